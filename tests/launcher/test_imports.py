"""The launcher starts fast and stays small: it imports neither torch nor FastAPI."""

from __future__ import annotations

import subprocess
import sys

import pytest


@pytest.mark.parametrize(
    "module",
    [
        "torchrl_ckpt.launcher.supervisor",
        "torchrl_ckpt.launcher.sft",
        "torchrl_ckpt.launcher.rl",
        "torchrl_ckpt.launcher.standalone",
        "torchrl_ckpt.cli.main",
    ],
)
def test_a_launcher_imports_neither_torch_nor_fastapi(module: str) -> None:
    program = f"import sys, {module}; print(*sorted({{'torch', 'fastapi'}} & set(sys.modules)))"
    imported = subprocess.check_output([sys.executable, "-c", program], text=True)
    assert imported.split() == []
