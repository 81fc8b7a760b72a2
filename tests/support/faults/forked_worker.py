"""Worker processes that are forked: a new program would import torch for seconds in every trial."""

from __future__ import annotations

import os
import signal
import subprocess
import time
import traceback
from collections.abc import Sequence
from contextlib import suppress
from multiprocessing.connection import Connection

from torchrl_ckpt.plugin_api.worker_process import WorkerProcess, serve

_POLL_SECONDS = 0.005


def fork_workers(*, die_with_worker: bool) -> None:
    """From now on, fork the worker processes of this process.

    With `die_with_worker`, this process kills itself as soon as it finds that a worker has died: a
    kill of a whole job reaches all of its processes at once, but strace can kill only one.
    """

    def launch(self: WorkerProcess, connection: int, fds: Sequence[int]) -> ForkedWorker:
        return ForkedWorker(connection, fds, die_with_worker=die_with_worker)

    WorkerProcess.launch = launch  # type: ignore[method-assign, assignment]


class ForkedWorker:
    """The part of `subprocess.Popen` that `WorkerProcess` uses."""

    def __init__(self, connection: int, fds: Sequence[int], *, die_with_worker: bool) -> None:
        self._exit_code: int | None = None
        self._die_with_worker = die_with_worker
        self.pid = os.fork()
        if self.pid == 0:
            _serve(connection, fds)

    def poll(self) -> int | None:
        if self._exit_code is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            self._exit_code = os.waitstatus_to_exitcode(status) if pid else None
            if self._exit_code and self._die_with_worker:
                os.kill(os.getpid(), signal.SIGKILL)
        return self._exit_code

    def wait(self, timeout: float = 30.0) -> int:
        deadline = time.monotonic() + timeout
        while (code := self.poll()) is None:
            if time.monotonic() > deadline:
                raise subprocess.TimeoutExpired("worker process", timeout)
            time.sleep(_POLL_SECONDS)
        return code

    def kill(self) -> None:
        if self.poll() is None:
            self._die_with_worker = False  # `WorkerProcess` kills it, not an injected fault.
            os.kill(self.pid, signal.SIGKILL)


def _serve(connection: int, fds: Sequence[int]) -> None:
    """Be the worker process; never returns."""
    code = 1
    try:
        # A new program would not inherit these, such as the connections of other workers.
        for descriptor in {int(name) for name in os.listdir("/proc/self/fd")} - {0, 1, 2, *fds}:
            with suppress(OSError):  # The descriptor of the listing itself.
                os.close(descriptor)
        serve(Connection(connection))
        code = 0
    except BaseException:
        traceback.print_exc()
    os._exit(code)
