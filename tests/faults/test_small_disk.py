"""A run that fills its disk keeps its last good checkpoint and reports the failed save."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import pytest

from tests.support.faults import small_disk
from tests.support.faults.job import MAX_STEPS, Job
from torchrl_ckpt.checkpoint.layout import Layout
from torchrl_ckpt.checkpoint.verify import verify

pytestmark = pytest.mark.slow

# Two of the job's three checkpoints of 5.3 MiB fit: a few MiB have to stay free.
_DISK_SIZE = "16m"


@pytest.fixture(name="disk")
def mount_small_disk(tmp_path: Path) -> Iterator[Path]:
    if reason := small_disk.unavailable():
        pytest.skip(reason)
    with small_disk.small_disk(tmp_path / "disk", _DISK_SIZE) as disk:
        yield disk


@pytest.mark.parametrize(("on_failure", "save_async"), [("continue", True), ("stop", False)])
def test_a_run_that_fills_its_disk_keeps_its_checkpoints(
    on_failure: Literal["continue", "stop"], save_async: bool, disk: Path, tmp_path: Path
) -> None:
    checkpoints = disk / "checkpoints"
    options = ["--ckpt.directory", str(checkpoints), "--ckpt.on-failure", on_failure]
    done = subprocess.run(
        [*Job(save_async=save_async).argv(tmp_path / "run"), *options],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert (done.returncode == 0) == (on_failure == "continue")
    output = " ".join((done.stdout + done.stderr).split())
    assert f"checkpoint of step {MAX_STEPS} failed: " in output
    steps = Layout(checkpoints).steps()
    assert steps == [2, 4]
    for step in steps:
        verify(Layout(checkpoints).step(step))
    assert Layout(checkpoints).leftovers() == []
