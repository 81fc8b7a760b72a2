"""A worker process executes calls, reports how it failed, dies with its owner, can be replaced."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator

import psutil
import pytest

from tests.support.commands import ROOT
from torchrl_ckpt.plugin_api.errors import CheckpointFailed, WorkerProcessDied
from torchrl_ckpt.plugin_api.worker_process import WorkerProcess

# The functions of this module are called there; a worker does not look in its working directory.
FINDS_TESTS = {"PYTHONPATH": str(ROOT)}


def product(a: int, b: int) -> tuple[int, int]:
    return os.getpid(), a * b


def fail(error: Exception) -> None:
    raise error


def remember(value: str) -> None:
    os.environ["REMEMBERED"] = value


def remembered() -> str | None:
    return os.environ.get("REMEMBERED")


@pytest.fixture(name="worker")
def start_worker() -> Iterator[WorkerProcess]:
    worker = WorkerProcess("test worker", (remember, ("from the setup",)), env=FINDS_TESTS)
    worker.start()
    yield worker
    worker.close()


def test_calls_run_in_another_process_after_its_setup(worker: WorkerProcess) -> None:
    pid, result = worker.call(product, 6, 7)
    assert (pid, result) == (worker.pid, 42)
    assert pid != os.getpid()
    assert worker.call(remembered) == "from the setup"


def test_an_exception_is_raised_here_and_the_process_goes_on(worker: WorkerProcess) -> None:
    with pytest.raises(OSError, match="No space left") as caught:
        worker.call(fail, OSError(28, "No space left on device"))
    assert caught.value.errno == 28
    with pytest.raises(RuntimeError, match="KeyError"):
        worker.call(fail, KeyError("a defect"))
    assert worker.call(product, 2, 2)[1] == 4


def test_an_exception_in_the_setup_is_raised_by_the_first_call() -> None:
    worker = WorkerProcess(
        "test worker", (fail, (OSError(13, "Permission denied"),)), env=FINDS_TESTS
    )
    worker.start()
    with pytest.raises(PermissionError):
        worker.call(product, 1, 1)
    worker.close()


def test_a_death_is_raised_and_a_new_start_replaces_the_process(worker: WorkerProcess) -> None:
    with pytest.raises(WorkerProcessDied, match="test worker was killed by SIGKILL"):
        worker.call(os.kill, worker.call(os.getpid), signal.SIGKILL)
    with pytest.raises(WorkerProcessDied):
        worker.call(product, 1, 1)
    worker.start()
    assert worker.call(remembered) == "from the setup"


def test_an_exception_in_on_wait_kills_the_process(worker: WorkerProcess) -> None:
    began = time.monotonic()

    def give_up() -> None:
        if time.monotonic() - began > 0.5:
            raise CheckpointFailed("too slow")

    with pytest.raises(CheckpointFailed, match="too slow"):
        worker.call(time.sleep, 60, on_wait=give_up)
    worker.start()
    assert worker.call(product, 3, 3)[1] == 9


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_signals_that_stop_a_job_do_not_interrupt_it(
    worker: WorkerProcess, number: int
) -> None:
    pid, _ = worker.call(product, 1, 1)
    os.kill(pid, number)
    assert worker.call(product, 5, 5) == (pid, 25)


def test_close_ends_it_although_a_forked_child_holds_the_socket_too() -> None:
    worker = WorkerProcess("test worker", env=FINDS_TESTS)
    worker.start()
    pid = worker.call(os.getpid)
    child = os.fork()
    if child == 0:  # Like a data loader's worker: it has every descriptor of this process.
        time.sleep(60)
        os._exit(0)
    began = time.monotonic()
    worker.close()
    assert time.monotonic() - began < 3
    assert not psutil.pid_exists(pid)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)


def test_it_dies_with_its_owner_in_the_middle_of_a_call() -> None:
    owner = subprocess.Popen(
        [sys.executable, "-c", OWNER], stdout=subprocess.PIPE, text=True, env=os.environ
    )
    assert owner.stdout is not None
    worker = psutil.Process(int(owner.stdout.readline()))
    owner.kill()
    owner.wait()
    worker.wait(5)  # Raises if it is still there.


OWNER = """
import os, time
from torchrl_ckpt.plugin_api.worker_process import WorkerProcess
worker = WorkerProcess("worker")
worker.start()
print(worker.call(os.getpid), flush=True)
worker.call(time.sleep, 60)
"""
