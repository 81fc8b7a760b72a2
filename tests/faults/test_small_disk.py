"""A run that fills its disk keeps its last good checkpoint and reports the failed save."""

from __future__ import annotations

import contextlib
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import pytest

from tests.support.commands import metrics, wait_for_step
from tests.support.faults import small_disk
from tests.support.faults.job import MAX_STEPS, Job
from torchrl_ckpt.checkpoint.layout import Layout
from torchrl_ckpt.checkpoint.verify import verify

pytestmark = pytest.mark.slow

# Two of the job's three checkpoints of 5.3 MiB fit: a few MiB have to stay free.
_DISK_SIZE = "16m"
_FULL_SECONDS = 5.0


@pytest.fixture(name="disk")
def mount_small_disk(tmp_path: Path) -> Iterator[Path]:
    if reason := small_disk.unavailable():
        pytest.skip(reason)
    with small_disk.small_disk(tmp_path / "disk", _DISK_SIZE) as disk:
        yield disk


@pytest.fixture(name="roomy_disk")
def mount_roomy_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk that all of a run fits on."""
    if reason := small_disk.unavailable():
        pytest.skip(reason)
    with small_disk.small_disk(tmp_path / "disk", "64m") as disk:
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


def test_a_run_whose_whole_directory_is_on_a_full_disk_goes_on_once_there_is_room(
    roomy_disk: Path,
) -> None:
    run, filler = roomy_disk / "run", roomy_disk / "filler"
    argv = [*Job(async_level=1).argv(run), "--ckpt.keep", "1"]
    with subprocess.Popen(
        argv, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        wait_for_step(run, 1)
        _fill(filler)
        time.sleep(_FULL_SECONDS)
        assert process.poll() is None
        full_at = _last_step(run)
        filler.unlink()
        output, _ = process.communicate(timeout=180)
    assert process.returncode == 0, output
    assert full_at < MAX_STEPS
    # The steps that were done on a full disk are written later, and the last one is saved.
    rows = metrics(run)
    assert [step for component, step in rows if component == "trainer"] == list(
        range(1, MAX_STEPS + 1)
    )
    verify(Layout(run / "checkpoints").step(MAX_STEPS))
    shown = " ".join(output.split())
    assert "cannot write the policy of step" in shown or "cannot write the rollouts of" in shown


def _fill(path: Path) -> None:
    with open(path, "wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(bytes(4096))


def _last_step(run: Path) -> int:
    return max((step for component, step in metrics(run) if component == "trainer"), default=0)
