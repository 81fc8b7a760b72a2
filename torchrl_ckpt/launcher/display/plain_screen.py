"""The display for files and pipes: one plain line for each thing that happens."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from rich.console import Console
from rich.text import Text

from torchrl_ckpt.launcher.display.lines import COMPONENT_WIDTH, message_text, metrics_text
from torchrl_ckpt.run.progress import ProgressMessage, TaskUpdate

_FIRST_NOTICE_SECONDS = 10.0


@dataclass
class _Pending:
    """A task under way. It is worth a line when it takes long, and again when twice as long."""

    update: TaskUpdate
    since: float
    notice_after: float = _FIRST_NOTICE_SECONDS


class PlainScreen:
    """Writes lines without any escape code."""

    def __init__(self, console: Console, title: str, tasks: Mapping[str, int]) -> None:
        self._console = console
        self._last_steps = tasks
        self._digits = max((len(str(last)) for last in tasks.values()), default=1)
        self._pending: dict[tuple[str, str], _Pending] = {}
        self._print(title)

    def metrics(self, row: Mapping[str, Any]) -> None:
        component = row["component"]
        last = f"/{self._last_steps[component]}" if component in self._last_steps else ""
        step = f"{row['step']:>{self._digits}}{last:<{self._digits + 1}}"
        self._print(f"{component:<{COMPONENT_WIDTH}}step {step}  {metrics_text(row)}")

    def task(self, update: TaskUpdate) -> None:
        key = (update.component, update.task)
        if update.ended:
            self._pending.pop(key, None)
        elif key in self._pending:
            self._pending[key].update = update
        else:
            self._pending[key] = _Pending(update, update.time)

    def message(self, message: ProgressMessage) -> None:
        self._print(message_text(message))

    def refresh(self) -> None:
        now = time.time()
        for pending in self._pending.values():
            seconds = now - pending.since
            if seconds >= pending.notice_after:
                pending.notice_after = 2 * seconds
                self._print(_pending_text(pending.update, seconds))

    def close(self) -> None:
        """Nothing to take away."""

    def _print(self, line: str) -> None:
        self._console.print(Text(line.rstrip()), soft_wrap=True)


def _pending_text(update: TaskUpdate, seconds: float) -> str:
    count = "" if update.total is None else f" {update.completed}/{update.total}"
    return f"{update.component:<{COMPONENT_WIDTH}}{update.task}{count} for {seconds:.0f} s now"
