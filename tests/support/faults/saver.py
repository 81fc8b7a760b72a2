"""Processes that save or restart, with or without an injected fault.

This is the client of the fork server `tests.support.faults.fork_server`.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from tests.support.faults import strace

if TYPE_CHECKING:
    from tests.support.toy_training import SaveOptions

AtStop = Callable[[Sequence[int]], bool]

_ROOT = Path(__file__).parents[3]
_EXIT_SECONDS = 10.0
_CONTINUE_SECONDS = 1.0
_HANG_SECONDS = 120.0


@dataclass(frozen=True)
class Outcome:
    """How a process ended. `exit_code` is -9 after SIGKILL; `error` is its message, if any.

    `reached`: whether the fault that was to be injected was; True without one.
    """

    exit_code: int
    error: str
    reached: bool = True


class Saver:
    """A running fork server."""

    def __init__(self) -> None:
        self._directory = tempfile.TemporaryDirectory()
        self._server = subprocess.Popen(
            [sys.executable, "-m", "tests.support.faults.fork_server"],
            cwd=_ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def save(
        self,
        run: Path,
        options: SaveOptions,
        steps: Sequence[int],
        *,
        fault: strace.Fault | None = None,
        die_together: bool = True,
        at_stop: AtStop | None = None,
        log: Path | None = None,
    ) -> Outcome:
        """Train and save each of `steps`, with a `fault`, or with the system calls recorded in
        `log`.

        If one of the job's processes is killed, the others are as well, unless not `die_together`.
        Where the fault stops a process, `at_stop` is called with the ids of all, and says whether
        it continues.
        """
        return self._execute("save", run, options, steps, fault, log, die_together, at_stop)

    def restart(
        self,
        run: Path,
        options: SaveOptions,
        *,
        fault: strace.Fault | None = None,
        log: Path | None = None,
    ) -> Outcome:
        """Do what a resumed run does before its processes start."""
        return self._execute("restart", run, options, [], fault, log)

    def close(self) -> None:
        assert self._server.stdin is not None
        self._server.stdin.close()
        self._server.wait(_EXIT_SECONDS)
        self._directory.cleanup()

    def _execute(
        self,
        task: Literal["save", "restart"],
        run: Path,
        options: SaveOptions,
        steps: Sequence[int],
        fault: strace.Fault | None,
        log: Path | None,
        die_together: bool = True,
        at_stop: AtStop | None = None,
    ) -> Outcome:
        processes = self._ask(
            {
                "name": task,
                "run": str(run),
                "options": asdict(options),
                "steps": list(steps),
                "die_together": die_together,
            }
        )
        if processes is None:
            raise RuntimeError(f"the task could not be prepared: {self._ask('go')['error']}")
        tracing: AbstractContextManager[None] = nullcontext()
        injected = Path(self._directory.name, "injected.log")
        if fault is not None:
            tracing = strace.injecting(processes, run, fault, injected)
        elif log is not None:
            tracing = strace.recording(processes, log)
        stopping: AbstractContextManager[None] = nullcontext()
        if fault is not None and at_stop is not None:
            stopping = _continuing(processes, fault.point.process, at_stop)
        with tracing, stopping:
            outcome = Outcome(**self._ask("go"))
        return replace(outcome, reached=fault is None or strace.reached(injected, fault.point))

    def _ask(self, request: Any) -> Any:
        assert self._server.stdin is not None
        assert self._server.stdout is not None
        self._server.stdin.write(json.dumps(request) + "\n")
        self._server.stdin.flush()
        return json.loads(self._server.stdout.readline())


@contextmanager
def _continuing(processes: Sequence[int], stopped: int, at_stop: AtStop) -> Iterator[None]:
    """Call `at_stop` when the process with index `stopped` has been stopped, and let it continue if
    that says so.

    All processes are killed if the task has not ended `_HANG_SECONDS` after that. Python itself may
    hang without memory: `Thread.start` waits for ever for a thread that could not begin.
    """
    has_ended = threading.Event()

    def watch() -> None:
        process = processes[stopped]
        if not (strace.wait_until_stopped(process, has_ended.is_set) and at_stop(processes)):
            return
        deadline = time.monotonic() + _HANG_SECONDS
        # More than once: the signal is lost if strace has not yet seen that the process stopped.
        while time.monotonic() < deadline:
            _signal(process, signal.SIGCONT)
            if has_ended.wait(_CONTINUE_SECONDS):
                return
        for each in processes:
            _signal(each, signal.SIGKILL)

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield
    finally:
        has_ended.set()
        watcher.join()


def _signal(process: int, number: signal.Signals) -> None:
    with suppress(ProcessLookupError):
        os.kill(process, number)
