"""The screen for files and pipes: one plain line for each event."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from rich.console import Console
from rich.text import Text

from torchrl_ckpt.launcher.display.lines import COMPONENT_WIDTH, message_text, metrics_text
from torchrl_ckpt.run.progress import Notices, ProgressMessage, TaskUpdate


@dataclass
class _RunningTask:
    """A task gets a line whenever one of its `notices` is due."""

    update: TaskUpdate
    started: float
    notices: Notices = field(default_factory=Notices)


class PlainScreen:
    """Prints lines without escape codes."""

    def __init__(self, console: Console, title: str, last_steps: Mapping[str, int]) -> None:
        self._console = console
        self._last_steps = last_steps
        self._num_digits = max((len(str(last)) for last in last_steps.values()), default=1)
        self._tasks: dict[tuple[str, str], _RunningTask] = {}
        self._print(title)

    def show_metrics(self, row: Mapping[str, Any]) -> None:
        component = row["component"]
        last = f"/{self._last_steps[component]}" if component in self._last_steps else ""
        step = f"{row['step']:>{self._num_digits}}{last:<{self._num_digits + 1}}"
        self._print(f"{component:<{COMPONENT_WIDTH}}step {step}  {metrics_text(row)}")

    def show_task(self, update: TaskUpdate) -> None:
        key = (update.component, update.task)
        if update.ended:
            self._tasks.pop(key, None)
        elif key in self._tasks:
            self._tasks[key].update = update
        else:
            self._tasks[key] = _RunningTask(update, started=update.time)

    def show_message(self, message: ProgressMessage) -> None:
        self._print(message_text(message))

    def refresh(self) -> None:
        now = time.time()
        for task in self._tasks.values():
            age = now - task.started
            if task.notices.is_due(age):
                self._print(_notice(task.update, age))

    def close(self) -> None:
        """Nothing to remove."""

    def _print(self, line: str) -> None:
        self._console.print(Text(line.rstrip()), soft_wrap=True)


def _notice(update: TaskUpdate, seconds: float) -> str:
    count = "" if update.total is None else f" {update.completed}/{update.total}"
    return f"{update.component:<{COMPONENT_WIDTH}}{update.task}{count}, {seconds:.0f} s so far"
