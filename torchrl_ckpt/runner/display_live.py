"""The display for terminals: bars for steps and for what is under way; messages scroll above."""

from __future__ import annotations

import time
from collections.abc import Mapping
from datetime import timedelta
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.filesize import decimal
from rich.live import Live
from rich.progress import BarColumn, Progress, TaskID, TextColumn
from rich.table import Column
from rich.text import Text

from torchrl_ckpt.observe.progress import Message, TaskUpdate
from torchrl_ckpt.runner.display_text import COMPONENT_WIDTH, message_text, metrics_text

_BAR_WIDTH = 16
_SPEED_ESTIMATE_SECONDS = 3600.0


class LiveScreen:
    """Redraws the lowest lines of the terminal, and leaves none of them."""

    def __init__(self, console: Console, title: str, tasks: Mapping[str, int], start: int) -> None:
        self._title = title
        self._began = time.monotonic()
        self._steps = _bars(console)
        self._step_bars = {
            component: self._steps.add_task(
                f"{component:<{COMPONENT_WIDTH}}",
                completed=start,
                total=last,
                count=f"{start}/{last}",
                detail="",
            )
            for component, last in tasks.items()
        }
        self._under_way = _bars(console)
        self._task_bars: dict[tuple[str, str], TaskID] = {}
        self._others: dict[str, str] = {}
        self._live = Live(
            get_renderable=self._render, console=console, auto_refresh=False, transient=True
        )
        self._live.start(refresh=True)

    def metrics(self, row: Mapping[str, Any]) -> None:
        component, step = row["component"], row["step"]
        if component in self._step_bars:
            bar = self._step_bars[component]
            total = self._steps.tasks[bar].total
            count = f"{step}/{total}"
            self._steps.update(bar, completed=step, count=count, detail=metrics_text(row))
        else:
            self._others[component] = f"step {step}  {metrics_text(row)}"

    def task(self, update: TaskUpdate) -> None:
        key = (update.component, update.task)
        if update.ended:
            if key in self._task_bars:
                self._under_way.remove_task(self._task_bars.pop(key))
            return
        if key not in self._task_bars:
            self._task_bars[key] = self._under_way.add_task(
                f"{update.component:<{COMPONENT_WIDTH}}", total=None, count="", detail=""
            )
        self._under_way.update(
            self._task_bars[key],
            completed=update.completed,
            total=update.total,
            count=_count(update),
            detail=update.task,
        )

    def message(self, message: Message) -> None:
        style = "yellow" if message.level == "warning" else ""
        self._live.console.print(Text(message_text(message), style=style), soft_wrap=True)

    def refresh(self) -> None:
        self._live.refresh()

    def close(self) -> None:
        self._live.stop()

    def _render(self) -> RenderableType:
        lines: list[RenderableType] = [self._headline(), self._steps]
        lines += [
            Text(f"{component:<{COMPONENT_WIDTH}} {text}", no_wrap=True, overflow="ellipsis")
            for component, text in self._others.items()
        ]
        if self._task_bars:
            lines += [Text("under way", style="dim"), self._under_way]
        return Group(*lines)

    def _headline(self) -> Text:
        line = Text(self._title, style="bold", no_wrap=True, overflow="ellipsis")
        line.append(f"  {timedelta(seconds=int(time.monotonic() - self._began))}", style="dim")
        remaining = max((task.time_remaining or 0 for task in self._steps.tasks), default=0)
        if remaining:
            line.append(f", about {timedelta(seconds=int(remaining))} to go", style="dim")
        return line


def _bars(console: Console) -> Progress:
    """Rows of name, bar, count and detail, which share the widths of no other rows."""
    cut = Column(no_wrap=True, overflow="ellipsis")
    return Progress(
        TextColumn("{task.description}", markup=False, table_column=Column(no_wrap=True)),
        BarColumn(bar_width=_BAR_WIDTH),
        TextColumn("{task.fields[count]}", markup=False, table_column=Column(no_wrap=True)),
        TextColumn("{task.fields[detail]}", markup=False, table_column=cut),
        console=console,
        auto_refresh=False,
        speed_estimate_period=_SPEED_ESTIMATE_SECONDS,
    )


def _count(update: TaskUpdate) -> str:
    if update.total is None:
        return ""
    if update.unit == "bytes":
        return f"{decimal(update.completed)} of {decimal(update.total)}"
    return f"{update.completed}/{update.total} {update.unit}".rstrip()
