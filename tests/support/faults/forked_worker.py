"""Companions that are forked, since a new program would import torch for seconds in every trial."""

from __future__ import annotations

import os
import signal
import subprocess
import time
import traceback
from collections.abc import Sequence
from contextlib import suppress
from multiprocessing.connection import Connection
from unittest.mock import patch

from torchrl_ckpt.plugin_api.worker_process import WorkerProcess, serve

_POLL_SECONDS = 0.005


def fork_companions() -> None:
    """From now on, in this process."""
    patch.object(
        WorkerProcess, "launch", lambda _, connection, fds: _Forked(connection, fds)
    ).start()


class _Forked:
    """As much of `subprocess.Popen` as `WorkerProcess` uses."""

    def __init__(self, connection: int, fds: Sequence[int]) -> None:
        self._code: int | None = None
        self.pid = os.fork()
        if self.pid == 0:
            _be_companion(connection, fds)

    def poll(self) -> int | None:
        if self._code is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            self._code = os.waitstatus_to_exitcode(status) if pid else None
        return self._code

    def wait(self, timeout: float = 30.0) -> int:
        deadline = time.monotonic() + timeout
        while (code := self.poll()) is None:
            if time.monotonic() > deadline:
                raise subprocess.TimeoutExpired("companion", timeout)
            time.sleep(_POLL_SECONDS)
        return code

    def kill(self) -> None:
        if self.poll() is None:
            os.kill(self.pid, signal.SIGKILL)


def _be_companion(connection: int, fds: Sequence[int]) -> None:
    code = 1
    try:
        # What a new program would not have either: other companions' ends among them.
        for descriptor in {int(name) for name in os.listdir("/proc/self/fd")} - {0, 1, 2, *fds}:
            with suppress(OSError):  # The listing's own.
                os.close(descriptor)
        serve(Connection(connection))
        code = 0
    except BaseException:
        traceback.print_exc()
    os._exit(code)
