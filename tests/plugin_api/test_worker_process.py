"""A companion does what it is told, says how it failed, dies with its owner and can be replaced."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator

import psutil
import pytest

from torchrl_ckpt.plugin_api.errors import CheckpointFailed, WorkerProcessDied
from torchrl_ckpt.plugin_api.worker_process import WorkerProcess


def product(a: int, b: int) -> tuple[int, int]:
    return os.getpid(), a * b


def fail(error: Exception) -> None:
    raise error


def remember(value: str) -> None:
    os.environ["REMEMBERED"] = value


def remembered() -> str | None:
    return os.environ.get("REMEMBERED")


@pytest.fixture
def companion() -> Iterator[WorkerProcess]:
    companion = WorkerProcess("helper of this test", (remember, ("what it was told first",)))
    companion.start()
    yield companion
    companion.close()


def test_it_works_in_a_process_of_its_own_after_its_setup(companion: WorkerProcess) -> None:
    pid, result = companion.call(product, 6, 7)
    assert (pid, result) == (companion.pid, 42)
    assert pid != os.getpid()
    assert companion.call(remembered) == "what it was told first"


def test_what_fails_over_there_fails_here_and_it_goes_on(companion: WorkerProcess) -> None:
    with pytest.raises(OSError, match="No space left") as caught:
        companion.call(fail, OSError(28, "No space left on device"))
    assert caught.value.errno == 28
    with pytest.raises(RuntimeError, match="KeyError"):
        companion.call(fail, KeyError("a defect"))
    assert companion.call(product, 2, 2)[1] == 4


def test_a_death_is_told_and_a_new_start_replaces_it(companion: WorkerProcess) -> None:
    with pytest.raises(WorkerProcessDied, match="helper of this test was killed by SIGKILL"):
        companion.call(os.kill, companion.call(os.getpid), signal.SIGKILL)
    with pytest.raises(WorkerProcessDied):
        companion.call(product, 1, 1)
    companion.start()
    assert companion.call(remembered) == "what it was told first"


def test_losing_patience_ends_it(companion: WorkerProcess) -> None:
    began = time.monotonic()

    def look() -> None:
        if time.monotonic() - began > 0.5:
            raise CheckpointFailed("too slow")

    with pytest.raises(CheckpointFailed, match="too slow"):
        companion.call(time.sleep, 60, on_wait=look)
    companion.start()
    assert companion.call(product, 3, 3)[1] == 9


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stopped_job_does_not_interrupt_it(companion: WorkerProcess, number: int) -> None:
    pid, _ = companion.call(product, 1, 1)
    os.kill(pid, number)
    assert companion.call(product, 5, 5) == (pid, 25)


def test_children_that_were_forked_meanwhile_do_not_keep_it_from_its_end() -> None:
    companion = WorkerProcess("helper of this test")
    companion.start()
    pid = companion.call(os.getpid)
    child = os.fork()
    if child == 0:  # A worker of a data loader, say: it has all that this process has open.
        time.sleep(60)
        os._exit(0)
    began = time.monotonic()
    companion.close()
    assert time.monotonic() - began < 3
    assert not psutil.pid_exists(pid)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)


def test_it_dies_with_its_owner_in_the_middle_of_its_work() -> None:
    owner = subprocess.Popen(
        [sys.executable, "-c", _OWNER], stdout=subprocess.PIPE, text=True, env=os.environ
    )
    assert owner.stdout is not None
    worker = psutil.Process(int(owner.stdout.readline()))
    owner.kill()
    owner.wait()
    worker.wait(5)  # Raises if it is still there.


_OWNER = """
import os, time
from torchrl_ckpt.plugin_api.worker_process import WorkerProcess
companion = WorkerProcess("worker")
companion.start()
print(companion.call(os.getpid), flush=True)
companion.call(time.sleep, 60)
"""
