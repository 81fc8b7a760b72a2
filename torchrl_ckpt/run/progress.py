"""`progress.jsonl`: tasks in progress, and messages to the user.

Every process of an attempt appends to it and the launcher's display follows it. Unlike metrics it
is not read again later.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from torchrl_ckpt.run import json_lines

Level = Literal["info", "warning"]

_UPDATE_INTERVAL_SECONDS = 0.25
_FIRST_NOTICE_SECONDS = 5.0

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class TaskUpdate:
    """The state of one of `component`'s tasks; `total` is None if unknown."""

    time: float
    component: str
    task: str
    completed: int
    total: int | None
    unit: str
    ended: bool


@dataclass(frozen=True)
class ProgressMessage:
    """A sentence for the user."""

    time: float
    component: str
    message: str
    level: Level


@dataclass(frozen=True)
class Finding:
    """What a check before the first step has found, as a sentence for the user."""

    text: str
    level: Level = "info"


class Notices:
    """When to mention what takes long: after 5 s, and again each time that its age has doubled."""

    def __init__(self) -> None:
        self._next_age = _FIRST_NOTICE_SECONDS

    def is_due(self, age: float) -> bool:
        """Whether to mention it now, `age` seconds after its start."""
        if age < self._next_age:
            return False
        self._next_age = 2 * age
        return True


class ProgressLog:
    """Write one component's progress events. `component` is its name in the metrics as well."""

    def __init__(self, path: Path, component: str) -> None:
        self._path = path
        self._component = component
        self._unsent: list[dict[str, Any]] = []

    def task(self, name: str, *, total: int | None = None, unit: str = "") -> Task:
        """Start a task, such as "rollouts", or "waiting for policy 3", which has no total.

        `unit` is "bytes" for what is counted in bytes. A component runs at most one task of a name
        at a time. Use the task in `with`, or call its `end`.
        """
        return Task(self, name, total, unit)

    def message(self, text: str, level: Level = "info") -> None:
        """Show `text` to the user, and write it to the component's log."""
        _log.log(logging.WARNING if level == "warning" else logging.INFO, "%s", text)
        self._append(message=text, level=level)

    def report(self, findings: Iterable[Finding]) -> None:
        """Show the warnings among `findings` to the user; the log has all of them."""
        for finding in findings:
            if finding.level == "warning":
                self.message(finding.text, "warning")
            else:
                _log.info("%s", finding.text)

    def _append(self, **event: Any) -> None:
        head = {"time": round(time.time(), 3), "component": self._component}
        self._unsent.append(head | event)
        try:
            while self._unsent:
                json_lines.append(self._path, self._unsent[0])
                self._unsent.pop(0)
        except OSError:
            # The file is only shown: a full disk must not end the run here. Messages are shown
            # once there is room again.
            self._unsent = [event for event in self._unsent if "message" in event]


class Task:
    """A task in progress, started by `ProgressLog.task`."""

    def __init__(self, log: ProgressLog, name: str, total: int | None, unit: str) -> None:
        self._log = log
        self._name = name
        self._total = total
        self._unit = unit
        self._completed = 0
        self._write(ended=False)

    def update(self, completed: int) -> None:
        """Report that `completed` of the total are done. Frequent calls are cheap."""
        self._completed = completed
        if time.monotonic() >= self._written + _UPDATE_INTERVAL_SECONDS:
            self._write(ended=False)

    def end(self) -> None:
        """Report the end of the task, whether it succeeded or not."""
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
    """Follow a growing `progress.jsonl`, which may not exist yet."""

    def __init__(self, path: Path) -> None:
        self._tail = json_lines.Tail(path)

    def read(self) -> list[TaskUpdate | ProgressMessage]:
        """Return the events since the last call."""
        return [
            ProgressMessage(**row) if "message" in row else TaskUpdate(**row)
            for row in self._tail.read()
        ]
