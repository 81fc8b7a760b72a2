"""A job runs no module that lies in its working directory."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.support.commands import RECIPES, succeed

# Modules that components, worker processes or what they import ask for by these names.
IMPORTED = ("xxhash", "json", "logging", "numpy", "torch", "pydantic", "transformers", "httpx")
AT_START = ("sitecustomize", "usercustomize")


@pytest.mark.slow
def test_modules_in_the_working_directory_are_not_run(tmp_path: Path) -> None:
    marks = tmp_path / "marks"
    marks.mkdir()
    directory = tmp_path / "downloads"
    directory.mkdir()
    for name in (*IMPORTED, *AT_START):
        code = f"import os; open({str(marks)!r} + f'/{name}.{{os.getpid()}}', 'w').close()\n"
        (directory / f"{name}.py").write_text(code)
    flags = ("--no-trainer.warm-start", "--no-orchestrator.evaluation", "--ckpt.save-async")
    small = ("--orchestrator.prompts-per-step", 4, "--max-steps", 2, "--trainer.ranks", 2)
    succeed("rl", "@", RECIPES / "rl_reverse.toml", *flags, *small, cwd=directory)
    assert [path.name for path in marks.iterdir()] == []
    manifest = directory / "outputs/rl_reverse/checkpoints/step_2/manifest.json"
    assert json.loads(manifest.read_text())["step"] == 2
