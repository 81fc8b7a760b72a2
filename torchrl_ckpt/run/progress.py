"""`progress.jsonl`: what is under way, and messages to the person who watches the run.

Any process of an attempt appends to it; the runner's display follows it. Unlike metrics it is
never read again.
"""

from __future__ import annotations

import logging
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from torchrl_ckpt.run import json_lines

Level = Literal["info", "warning"]

_SECONDS_BETWEEN_UPDATES = 0.25
_LOGGER = logging.getLogger(__name__)


@dataclass(frozen=True)
class TaskUpdate:
    """How far `component` is with a task; `total` is None where nobody knows."""

    time: float
    component: str
    task: str
    completed: int
    total: int | None
    unit: str
    ended: bool


@dataclass(frozen=True)
class Message:
    """A sentence for the person who watches."""

    time: float
    component: str
    message: str
    level: Level


class ProgressLog:
    """One component's pen. `component` is the name that its metrics carry."""

    def __init__(self, path: Path, component: str) -> None:
        self._path = path
        self._component = component

    def task(self, name: str, *, total: int | None = None, unit: str = "") -> Task:
        """Begin a task, such as "rollouts", or "waiting for policy 3", which has no total.

        `unit` is "bytes" for what is counted in bytes. A component has one task of a name at a
        time. Use it in `with`, or call its `end`.
        """
        return Task(self, name, total, unit)

    def message(self, text: str, level: Level = "info") -> None:
        """Tell the person who watches, and the component's log."""
        _LOGGER.log(logging.WARNING if level == "warning" else logging.INFO, "%s", text)
        self._append(message=text, level=level)

    def _append(self, **event: Any) -> None:
        head = {"time": round(time.time(), 3), "component": self._component}
        # Nobody reads it again: a full disk is no reason for a run to end.
        with suppress(OSError):
            json_lines.append(self._path, head | event)


class Task:
    """Something under way, as `ProgressLog.task` began it."""

    def __init__(self, log: ProgressLog, name: str, total: int | None, unit: str) -> None:
        self._log = log
        self._name = name
        self._total = total
        self._unit = unit
        self._completed = 0
        self._write(ended=False)

    def update(self, completed: int) -> None:
        """Say that `completed` of the total are done. May be called as often as one likes."""
        self._completed = completed
        if time.monotonic() >= self._written + _SECONDS_BETWEEN_UPDATES:
            self._write(ended=False)

    def end(self) -> None:
        """Say that it is no longer under way, finished or not."""
        self._write(ended=True)

    def __enter__(self) -> Task:
        return self

    def __exit__(self, *exception: object) -> None:
        self.end()

    def _write(self, *, ended: bool) -> None:
        self._written = time.monotonic()
        self._log._append(
            task=self._name,
            completed=self._completed,
            total=self._total,
            unit=self._unit,
            ended=ended,
        )


class ProgressTail:
    """Follows a `progress.jsonl` that grows, and need not be there yet."""

    def __init__(self, path: Path) -> None:
        self._tail = json_lines.Tail(path)

    def read(self) -> list[TaskUpdate | Message]:
        """The events since the last call."""
        return [
            Message(**row) if "message" in row else TaskUpdate(**row) for row in self._tail.read()
        ]
