"""Finds a process of a job that is alive but makes no progress, and has its stacks logged."""

from __future__ import annotations

import signal
import time
from collections import defaultdict
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

from torchrl_ckpt.launcher.process import living_descendants
from torchrl_ckpt.plugin_api.heartbeat import DUMP_SIGNAL

_LOOK_SECONDS = 0.5
_DUMP_SECONDS = 2.0


@dataclass(frozen=True)
class Stalled:
    """A process that makes no progress, as `text` says.

    `owner` is the component that it is or belongs to, such as `trainer` for one of its ranks. A
    worker process of a component, such as `checkpoint writer`, is its own owner.
    """

    owner: str
    process: psutil.Process
    text: str


@dataclass
class _Heart:
    """What was seen of one file: its latest time, and for how long it has not changed."""

    name: str
    process: psutil.Process
    beat: float
    silent_seconds: float = 0.0

    @property
    def owner(self) -> str:
        return self.name.partition(" rank ")[0]

    @property
    def judged_with(self) -> tuple[str, int | None]:
        """Equal for processes that are judged together: ranks wait for each other without a beat,
        so only all of them together can be silent."""
        is_rank = self.owner != self.name
        return self.owner, None if is_rank else self.process.pid


class Watchdog:
    """Watches the heartbeats in `directory` (`plugin_api/heartbeat.py`).

    A process whose beat does not change for `timeout` seconds is stalled; None switches this off.
    Only time in which this process itself ran is counted: all may have been suspended.
    """

    def __init__(self, directory: Path, timeout: float | None) -> None:
        self._directory = directory
        self._timeout = timeout
        self._hearts: dict[Path, _Heart] = {}
        self._looked = time.monotonic()

    def find(self) -> Stalled | None:
        """Return a process that is stalled, the cause first; None if there is none."""
        now = time.monotonic()
        elapsed = now - self._looked
        if self._timeout is None or elapsed < _LOOK_SECONDS:
            return None
        self._looked = now
        self._read(min(elapsed, 2 * _LOOK_SECONDS))
        groups: defaultdict[tuple[str, int | None], list[_Heart]] = defaultdict(list)
        for heart in self._hearts.values():
            groups[heart.judged_with].append(heart)
        silent = [
            heart
            for hearts in groups.values()
            if min(heart.silent_seconds for heart in hearts) > self._timeout
            for heart in hearts
        ]
        if not silent:
            return None
        first = max(silent, key=lambda heart: (_is_stopped(heart.process), heart.silent_seconds))
        reason = " (stopped by a signal)" if _is_stopped(first.process) else ""
        text = (
            f"{first.name} (process {first.process.pid}) has shown no progress for "
            f"{first.silent_seconds:.0f} s{reason}"
        )
        _dump_stacks([heart.process for heart in groups[first.judged_with]])
        return Stalled(first.owner, first.process, text)

    def _read(self, elapsed: float) -> None:
        """Look at every file. A process of another launcher is not watched."""
        ours = {process.pid: process for process in living_descendants()}
        found: dict[Path, _Heart] = {}
        for path in self._directory.glob("*.*"):
            name, _, pid = path.name.rpartition(".")
            if not pid.isdecimal() or int(pid) not in ours:
                continue
            with suppress(OSError):
                beat = path.stat().st_mtime
                heart = self._hearts.get(path) or _Heart(name, ours[int(pid)], beat)
                heart.silent_seconds = heart.silent_seconds + elapsed if heart.beat == beat else 0.0
                heart.beat = beat
                found[path] = heart
        self._hearts = found


def _is_stopped(process: psutil.Process) -> bool:
    with suppress(psutil.NoSuchProcess):
        return process.status() in (psutil.STATUS_STOPPED, psutil.STATUS_TRACING_STOP)
    return False


def _dump_stacks(processes: Sequence[psutil.Process]) -> None:
    """Have `processes` write their stacks into their log; a stopped one is continued for that."""
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            process.send_signal(DUMP_SIGNAL)
            process.send_signal(signal.SIGCONT)
    time.sleep(_DUMP_SECONDS)
