"""A child process that executes calls, so that their work does not hold this process's interpreter.

    python -P -m torchrl_ckpt.plugin_api.worker_process DESCRIPTOR NAME    # how `start` starts it

Calls and results are pickled and sent over a socket pair that only the two processes have: both
ends are this program. The child is tied to the thread that started it and dies with it, so that
nothing goes on writing after the trainer was killed.
"""

from __future__ import annotations

import logging
import os
import signal
import socket
import subprocess
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from multiprocessing.connection import Connection
from typing import Any, TypeVar

from torchrl_ckpt.plugin_api import heartbeat
from torchrl_ckpt.plugin_api.errors import UserError, WorkerProcessDied
from torchrl_ckpt.plugin_api.parent_death import die_with_parent

T = TypeVar("T")

_POLL_SECONDS = 0.1
_EXIT_SECONDS = 5.0
_IDLE_BEAT_SECONDS = 1.0

_log = logging.getLogger(__name__)


class WorkerProcess:
    """A child process called `name` that executes `setup` once and then one call after another.

    `pass_fds` are open in it under the same numbers. Functions are pickled by name, so they must be
    importable. Not thread-safe.
    """

    def __init__(
        self,
        name: str,
        setup: tuple[Callable[..., object], Sequence[Any]] | None = None,
        *,
        pass_fds: Sequence[int] = (),
        env: Mapping[str, str] | None = None,
    ) -> None:
        self._name = name
        self._setup = setup
        self._pass_fds = tuple(pass_fds)
        self._env = {**os.environ, **(env or {})}
        self._process: subprocess.Popen[bytes] | None = None
        self._connection: Connection | None = None
        self._is_set_up = False

    @property
    def pid(self) -> int | None:
        """The process id; None before the first start."""
        return self._process.pid if self._process else None

    def start(self) -> None:
        """Start the process unless it is alive. Returns before it is ready.

        The process lives no longer than the thread that calls this.
        """
        if self._process is not None:
            if self._process.poll() is None:
                return
            _log.warning("the %s had %s; starting a new one", self._name, self._describe_end())
            self.close()
        ours, theirs = socket.socketpair()
        with theirs:
            fds = (theirs.fileno(), *self._pass_fds)
            self._process = self.launch(theirs.fileno(), fds)
        self._connection = Connection(ours.detach())
        self._is_set_up = self._setup is None
        if self._setup is not None:
            self._send(*self._setup)

    def launch(self, connection: int, fds: Sequence[int]) -> subprocess.Popen[bytes]:
        """Start a new program that serves the descriptor `connection` and has `fds` open.

        `start` calls this. A program that would be slow to import may replace it by a fork.
        """
        return subprocess.Popen(
            # -P: it finds no module in the working directory.
            [sys.executable, "-P", "-m", __name__, str(connection), self._name],
            stdin=subprocess.DEVNULL,
            pass_fds=fds,
            env=self._env,
        )

    def call(
        self, function: Callable[..., T], *args: Any, on_wait: Callable[[], object] | None = None
    ) -> T:
        """Execute `function(*args)` in the process; return its result or raise its exception.

        `on_wait` is called ten times a second meanwhile; if it raises, the process is killed. An
        exception other than `OSError` and `UserError` arrives as a `RuntimeError` with its text.
        Raises `WorkerProcessDied` where the process ends before it has answered.
        """
        try:
            if not self._is_set_up:
                succeeded, error = self._receive(on_wait)
                if not succeeded:
                    self._kill()
                    raise error
                self._is_set_up = True
            self._send(function, args)
            succeeded, result = self._receive(on_wait)
        except (ConnectionError, EOFError):
            raise WorkerProcessDied(f"the {self._name} {self._describe_end()}") from None
        if not succeeded:
            raise result
        return result

    def close(self) -> None:
        """End the process after the call it is executing; kill it if that takes too long."""
        self._disconnect()
        if self._process is not None:
            try:
                self._process.wait(_EXIT_SECONDS)
            except subprocess.TimeoutExpired:
                self._kill()
            self._process = None

    def _send(self, function: Callable[..., object], args: Sequence[Any]) -> None:
        if self._connection is None:
            raise EOFError
        self._connection.send((function, tuple(args)))

    def _receive(self, on_wait: Callable[[], object] | None) -> tuple[bool, Any]:
        """Wait for `(succeeded, result or exception)`."""
        if self._connection is None:
            raise EOFError
        try:
            while not self._connection.poll(_POLL_SECONDS):
                if on_wait is not None:
                    on_wait()
            return self._connection.recv()
        except (ConnectionError, EOFError):
            raise
        except BaseException:
            self._kill()
            raise

    def _describe_end(self) -> str:
        if self._process is None:
            return "was never started"
        try:
            code = self._process.wait(_EXIT_SECONDS)
        except subprocess.TimeoutExpired:
            self._kill()
            return "stopped answering and was killed"
        if code < 0:
            return f"was killed by {signal.Signals(-code).name}"
        return f"ended with exit code {code}; the log of this component shows its last output"

    def _kill(self) -> None:
        """Kill the process. If it hangs in the kernel, on a dead network file system for example,
        it may outlive this call for a while; nothing waits for it."""
        self._disconnect()
        if self._process is not None:
            self._process.kill()
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(_EXIT_SECONDS)

    def _disconnect(self) -> None:
        if self._connection is None:
            return
        # Closing is not enough: children that this process has forked hold the socket as well.
        with suppress(OSError), socket.socket(fileno=os.dup(self._connection.fileno())) as ours:
            ours.shutdown(socket.SHUT_RDWR)
        self._connection.close()
        self._connection = None


def serve(connection: Connection) -> None:
    """Execute calls until the other end closes."""
    die_with_parent()
    # Ctrl-C and a stopped job reach every process at once; a save in progress must be finished.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    while True:
        try:
            while not connection.poll(_IDLE_BEAT_SECONDS):
                heartbeat.beat()
            function, args = connection.recv()
        except EOFError:
            return
        heartbeat.beat()
        try:
            answer = (True, function(*args))
        except (OSError, UserError) as error:
            answer = (False, error)
        except Exception as error:
            traceback.print_exc()
            answer = (False, RuntimeError(repr(error)))  # Not every exception can be pickled.
        connection.send(answer)


if __name__ == "__main__":
    heartbeat.begin(sys.argv[2])
    serve(Connection(int(sys.argv[1])))
