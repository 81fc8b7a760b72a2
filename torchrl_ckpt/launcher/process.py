"""One component of a job as a process: its start, its log, its end."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Collection, Mapping, Sequence, Set
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from torchrl_ckpt.plugin_api import parent_death

_POLL_SECONDS = 0.05
_LONGEST_KILL_SECONDS = 10.0
_LONGEST_TAIL_BYTES = 64 * 1024


@dataclass(frozen=True)
class Component:
    """What to start. `env` adds to the runner's environment; `log` gets all output.

    `restarts` says how often it may be started again when it has ended, which is for a server that
    holds no state.
    """

    name: str
    argv: Sequence[str]
    log: Path
    env: Mapping[str, str] = field(default_factory=dict)
    pass_fds: tuple[int, ...] = ()
    restarts: int = 0


class Process:
    """A running component, in a session of its own: Ctrl-C in the terminal reaches the runner only.

    It is killed when the runner dies. Start it from the runner's main thread: the kernel takes the
    end of the starting thread for the end of the parent.
    """

    def __init__(self, component: Component) -> None:
        self.component = component
        self.name = component.name
        self.log = component.log
        inherited = {**os.environ, **component.env, "PYTHONUNBUFFERED": "1"}
        with open(component.log, "ab") as log:
            self._popen = subprocess.Popen(
                [sys.executable, "-I", "-S", parent_death.__file__, *component.argv],
                env={**inherited, parent_death.ANCESTOR_VARIABLE: str(os.getpid())},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                pass_fds=component.pass_fds,
                start_new_session=True,
            )

    def poll(self) -> int | None:
        """The exit code, negative for the signal that killed it; None while it runs."""
        return self._popen.poll()

    def terminate(self) -> None:
        """Ask the process and its group to end."""
        if self.poll() is None:
            os.killpg(self._popen.pid, signal.SIGTERM)

    def kill_group(self) -> None:
        """End what it has started, which may have survived it."""
        with suppress(ProcessLookupError):
            os.killpg(self._popen.pid, signal.SIGKILL)

    def how_it_ended(self) -> str:
        """Such as "ended with exit code 3"."""
        code = self.poll()
        if code is None:
            return "is running"
        if code >= 0:
            return f"ended with exit code {code}"
        names = {known.value: known.name for known in signal.Signals}
        hint = ", as happens when memory runs out" if -code == signal.SIGKILL else ""
        return f"was killed by {names.get(-code, f'signal {-code}')}{hint}"

    def tail(self, lines: int) -> list[str]:
        """The last `lines` lines of its log."""
        with open(self.log, "rb") as log:
            log.seek(max(0, self.log.stat().st_size - _LONGEST_TAIL_BYTES))
            return log.read().decode(errors="replace").splitlines()[-lines:]


def descendants() -> set[psutil.Process]:
    """Every living process below this one."""
    living = set()
    for process in psutil.Process().children(recursive=True):
        with suppress(psutil.NoSuchProcess):
            if process.status() != psutil.STATUS_ZOMBIE:
                living.add(process)
    return living


def stop(processes: Collection[Process], *, grace: float, spare: Set[psutil.Process]) -> None:
    """Ask `processes` to end; kill what is left after `grace` seconds, whoever started it.

    That is every descendant of this process but those in `spare`. After
    `parent_death.adopt_orphans` none can slip away by losing its parent or changing its session.
    """
    for process in processes:
        process.terminate()
    if not _all_gone(grace, processes, spare):
        deadline = time.monotonic() + _LONGEST_KILL_SECONDS
        while not _all_gone(_POLL_SECONDS, processes, spare) and time.monotonic() < deadline:
            for process in descendants() - spare:
                with suppress(psutil.NoSuchProcess):
                    process.kill()


def _all_gone(seconds: float, processes: Collection[Process], spare: Set[psutil.Process]) -> bool:
    """Wait up to `seconds` for the end of `processes` and everything they started."""
    deadline = time.monotonic() + seconds
    while True:
        ended = [process.poll() is not None for process in processes]
        if all(ended) and descendants() <= spare:
            return True
        if time.monotonic() >= deadline:
            return False
        time.sleep(_POLL_SECONDS)
