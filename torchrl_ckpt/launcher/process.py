"""A component's process: start it, read the end of its log, end it with all that it has started."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Collection, Set
from contextlib import suppress

import psutil

from torchrl_ckpt.launcher.components import Component
from torchrl_ckpt.plugin_api import parent_death

_POLL_SECONDS = 0.05
_KILL_SECONDS = 10.0
_TAIL_BYTES = 64 * 1024

MAX_LOG_BYTES = 64 * 1024 * 1024
_KEPT_LOG_BYTES = MAX_LOG_BYTES // 2  # What is kept of the end of a log that has become larger.


class ComponentProcess:
    """A running component, in a session of its own: Ctrl-C in the terminal does not reach it.

    It is killed when the launcher dies. Create it in the launcher's main thread: the kernel takes
    the end of the thread that started a process for the end of its parent.
    """

    def __init__(self, component: Component) -> None:
        self.component = component
        self.name = component.name
        self.log = component.log
        self.kill_reason: str | None = None
        """Why the launcher itself has killed it, if it has."""
        # Appending, so that `limit_log` may cut the file while the process writes to it.
        with open(component.log, "ab") as log:
            self._popen = subprocess.Popen(
                [sys.executable, "-I", "-S", parent_death.__file__, *component.argv],
                env={
                    **os.environ,
                    **component.env,
                    "PYTHONUNBUFFERED": "1",
                    # -P for every Python that it starts in turn, such as an engine's own processes.
                    "PYTHONSAFEPATH": "1",
                    parent_death.ANCESTOR_VARIABLE: str(os.getpid()),
                },
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                pass_fds=component.pass_fds,
                start_new_session=True,
            )

    def poll(self) -> int | None:
        """Return the exit code, negative if a signal killed it; None while it runs."""
        return self._popen.poll()

    def terminate(self) -> None:
        """Send SIGTERM to the process and its group, if it runs."""
        if self.poll() is None:
            os.killpg(self._popen.pid, signal.SIGTERM)

    def kill_group(self) -> None:
        """Kill the processes that it has started and that have survived it."""
        with suppress(ProcessLookupError):
            os.killpg(self._popen.pid, signal.SIGKILL)

    def describe_exit(self) -> str:
        """Describe how it ended, such as "ended with exit code 3"."""
        code = self.poll()
        if code is None:
            return "is running"
        if code >= 0:
            return f"ended with exit code {code}"
        names = {known.value: known.name for known in signal.Signals}
        hint = " (the machine may be out of memory)" if -code == signal.SIGKILL else ""
        if self.kill_reason is not None:
            hint = f" by the launcher ({self.kill_reason})"
        return f"was killed by {names.get(-code, f'signal {-code}')}{hint}"

    def limit_log(self) -> None:
        """Keep only the end of its log if that has become too large. Call it every second or so.

        What the process writes in these milliseconds may come before that end, or be lost.
        """
        with suppress(OSError):  # a full disk, or a log that a person has removed, ends no job
            if self.log.stat().st_size <= MAX_LOG_BYTES:
                return
            with open(self.log, "r+b") as log:
                start = log.seek(-_KEPT_LOG_BYTES, os.SEEK_END)
                kept = log.read()
                kept = kept[kept.find(b"\n") + 1 :] + log.read()  # with what came meanwhile
                log.truncate(0)
            note = f"[the log exceeded {MAX_LOG_BYTES} bytes: its first {start} are removed]\n"
            with open(self.log, "ab") as log:
                log.write(note.encode() + kept)

    def log_tail(self, num_lines: int) -> list[str]:
        """Return the last lines of its log."""
        with open(self.log, "rb") as log:
            log.seek(max(0, self.log.stat().st_size - _TAIL_BYTES))
            return log.read().decode(errors="replace").splitlines()[-num_lines:]


def living_descendants() -> set[psutil.Process]:
    """Return the living processes below this one."""
    living = set()
    for process in psutil.Process().children(recursive=True):
        with suppress(psutil.NoSuchProcess):
            if process.status() != psutil.STATUS_ZOMBIE:
                living.add(process)
    return living


def stop_processes(
    processes: Collection[ComponentProcess],
    *,
    grace_seconds: float,
    exclude: Set[psutil.Process],
) -> None:
    """Ask `processes` to end, and kill what is left after `grace_seconds`.

    What is left means every descendant of this process but those in `exclude`, whoever started it.
    After `parent_death.adopt_orphans` no process escapes by losing its parent or by changing its
    session.
    """
    for process in processes:
        process.terminate()
    if not _wait_until_gone(grace_seconds, processes, exclude):
        deadline = time.monotonic() + _KILL_SECONDS
        while (
            not _wait_until_gone(_POLL_SECONDS, processes, exclude) and time.monotonic() < deadline
        ):
            for descendant in living_descendants() - exclude:
                with suppress(psutil.NoSuchProcess):
                    descendant.kill()


def _wait_until_gone(
    seconds: float, processes: Collection[ComponentProcess], exclude: Set[psutil.Process]
) -> bool:
    """Wait until `processes` and all that they started have ended; False if that takes longer."""
    deadline = time.monotonic() + seconds
    while True:
        ended = [process.poll() is not None for process in processes]
        if all(ended) and living_descendants() <= exclude:
            return True
        if time.monotonic() >= deadline:
            return False
        time.sleep(_POLL_SECONDS)
