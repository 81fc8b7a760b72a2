"""The screen for terminals: bars for steps and running tasks at the bottom, messages above them."""

from __future__ import annotations

import time
from collections.abc import Mapping
from datetime import timedelta
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.filesize import decimal
from rich.live import Live
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TaskID, TextColumn
from rich.table import Column
from rich.text import Text

from torchrl_ckpt.launcher.display.lines import COMPONENT_WIDTH, message_text, metrics_text
from torchrl_ckpt.run.progress import ProgressMessage, TaskUpdate

_BAR_WIDTH = 16
_SPEED_ESTIMATE_SECONDS = 3600.0


class LiveScreen:
    """Redraws the last lines of the terminal, and removes them in the end."""

    def __init__(
        self, console: Console, title: str, last_steps: Mapping[str, int], start_step: int
    ) -> None:
        self._console = console
        self._title = title
        self._started = time.monotonic()
        self._bars = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(_BAR_WIDTH, table_column=Column(no_wrap=True)),
            _CountColumn(table_column=Column(no_wrap=True, min_width=len("1024/1024"))),
            _DetailColumn(table_column=Column()),
            console=console,
            auto_refresh=False,
            speed_estimate_period=_SPEED_ESTIMATE_SECONDS,
        )
        self._step_bars = {
            component: self._add_bar(component, completed=start_step, total=last)
            for component, last in last_steps.items()
        }
        self._task_bars: dict[tuple[str, str], TaskID] = {}
        self._other_metrics: dict[str, str] = {}
        self._live = Live(
            get_renderable=self._render, console=console, auto_refresh=False, transient=True
        )
        self._live.start(refresh=True)

    def show_metrics(self, row: Mapping[str, Any]) -> None:
        component, step, text = row["component"], row["step"], metrics_text(row)
        if component in self._step_bars:
            self._bars.update(self._step_bars[component], completed=step, detail=text)
        else:
            self._other_metrics[component] = f"step {step}  {text}"

    def show_task(self, update: TaskUpdate) -> None:
        key = (update.component, update.task)
        if update.ended:
            if key in self._task_bars:
                self._bars.remove_task(self._task_bars.pop(key))
            return
        if key not in self._task_bars:
            detail = update.task
            if update.unit == "bytes" and update.total is not None:
                detail += f" {decimal(update.total)}"
            self._task_bars[key] = self._add_bar(
                update.component, total=update.total, detail=detail, percent=update.unit == "bytes"
            )
        self._bars.update(self._task_bars[key], completed=update.completed)

    def show_message(self, message: ProgressMessage) -> None:
        style = "yellow" if message.level == "warning" else ""
        self._live.console.print(Text(message_text(message), style=style), soft_wrap=True)

    def refresh(self) -> None:
        self._live.refresh()

    def close(self) -> None:
        self._live.stop()

    def _add_bar(
        self,
        component: str,
        *,
        total: int | None,
        completed: int = 0,
        detail: str = "",
        percent: bool = False,
    ) -> TaskID:
        return self._bars.add_task(
            f"{component:<{COMPONENT_WIDTH}}",
            total=total,
            completed=completed,
            detail=detail,
            percent=percent,
        )

    def _render(self) -> RenderableType:
        other_lines = [
            Text(f"{component:<{COMPONENT_WIDTH}} {text}", no_wrap=True, overflow="ellipsis")
            for component, text in self._other_metrics.items()
        ]
        return Group(self._headline(), self._bars, *other_lines)

    def _headline(self) -> Text:
        """The title, the time since the start, and an estimate of the time that remains."""
        times = f"  {_whole_seconds(time.monotonic() - self._started)}"
        step_bars = set(self._step_bars.values())
        bars = [bar for bar in self._bars.tasks if bar.id in step_bars]
        remaining = max((bar.time_remaining or 0 for bar in bars), default=0)
        if remaining:
            times += f", about {_whole_seconds(remaining)} to go"
        # In a narrow terminal the title is cut off: the times matter more.
        line = Text(self._title, style="bold", no_wrap=True)
        room = max(1, self._console.width - len(times))
        line.truncate(room, overflow="ellipsis")
        line.append(times, style="dim")
        line.overflow = "ellipsis"
        return line


class _CountColumn(ProgressColumn):
    """How much is done; for a task without a total, the time since its start."""

    def render(self, task: Task) -> Text:
        if task.total is None:
            return Text(_whole_seconds(task.elapsed or 0))
        if task.fields["percent"]:
            return Text(f"{task.percentage:.0f}%")
        return Text(f"{task.completed:.0f}/{task.total:.0f}")


class _DetailColumn(ProgressColumn):
    """The text of a bar; the only column that is cut off in a narrow terminal."""

    def render(self, task: Task) -> Text:
        return Text(task.fields["detail"], no_wrap=True, overflow="ellipsis")


def _whole_seconds(seconds: float) -> str:
    return str(timedelta(seconds=int(seconds)))
