"""A run with three real checkpoints, saved once and copied for each test."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.support.ckpt_command import CkptCommand
from tests.support.saved_run import save_run


@pytest.fixture(name="ckpt")
def make_ckpt(capsys: pytest.CaptureFixture[str]) -> CkptCommand:
    """`torchrl-ckpt ckpt`."""
    return CkptCommand(capsys)


@pytest.fixture(name="saved_run", scope="session")
def make_saved_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run that all tests share. Do not change it."""
    root = tmp_path_factory.mktemp("ckpt") / "run"
    save_run(root)
    return root


@pytest.fixture(name="run")
def copy_run(saved_run: Path, tmp_path: Path) -> Path:
    """A copy of the run, with checkpoints of the steps 2, 4 and 6."""
    return shutil.copytree(saved_run, tmp_path / "run")
