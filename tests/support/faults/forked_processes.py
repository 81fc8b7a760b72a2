"""Ranks and worker processes that are forked: a new program would import torch for seconds in every
trial."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
import time
import traceback
from collections.abc import Sequence
from contextlib import suppress
from multiprocessing.connection import Connection

from torchrl_ckpt.plugin_api.parent_death import die_with_parent
from torchrl_ckpt.plugin_api.worker_process import WorkerProcess, serve

_POLL_SECONDS = 0.005
_DEATH_SECONDS = 1.0


class ForkedRanks:
    """This process as rank 0, and the other ranks, which are its children and die with it.

    With `die_together`, rank 0 kills itself as soon as another rank has died. In the other ranks'
    processes this object is the same but for `rank`.
    """

    def __init__(self, size: int, *, die_together: bool) -> None:
        self.rank = 0
        self._die_together = die_together
        self._exit_codes: dict[int, int] = {}
        self._watchers: list[threading.Thread] = []
        for rank in range(1, size):
            pid = os.fork()
            if pid == 0:
                self.rank, self._watchers = rank, []
                die_with_parent()
                return
            self._watchers.append(threading.Thread(target=self._watch, args=(pid,), daemon=True))
        for watcher in self._watchers:
            watcher.start()

    def wait(self) -> int:
        """Wait for the other ranks; return the exit code of one that failed, or 0."""
        for watcher in self._watchers:
            watcher.join()
        return next((abs(code) for code in self._exit_codes.values() if code), 0)

    def let_die(self) -> None:
        """After an error: if it came of another rank's death, this process dies here with it."""
        for watcher in self._watchers:
            watcher.join(_DEATH_SECONDS)

    def _watch(self, pid: int) -> None:
        _, status = os.waitpid(pid, 0)
        code = self._exit_codes[pid] = os.waitstatus_to_exitcode(status)
        if code < 0 and self._die_together:
            os.kill(os.getpid(), signal.SIGKILL)


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
