"""`uv run COMMAND` works on a fresh clone: uv can resolve the project."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.support.commands import BIN, ROOT

UV = shutil.which("uv", path=f"{BIN}{os.pathsep}{os.environ.get('PATH', '')}")


@pytest.mark.slow
@pytest.mark.skipif(UV is None, reason="uv is not installed")
def test_uv_resolves_the_project_with_all_its_extras(tmp_path: Path) -> None:
    # Only metadata are read. Local wheels are left out: they could hide that an index lacks one.
    for name in ("pyproject.toml", "README.md"):
        shutil.copy(ROOT / name, tmp_path)
    environment = {name: value for name, value in os.environ.items() if name != "UV_FIND_LINKS"}

    finished = subprocess.run(
        [str(UV), "lock", "--no-cache", "--directory", str(tmp_path)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )

    if "Failed to fetch" in finished.stderr:
        pytest.skip(f"no package index can be reached: {finished.stderr}")
    assert finished.returncode == 0, finished.stderr
    assert (tmp_path / "uv.lock").is_file()
