"""What a person sees of a run: a live display in a terminal, plain lines elsewhere.

It follows the files that the processes write anyway, so no process talks to it.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from rich.console import Console
from rich.text import Text

from torchrl_ckpt.launcher.display.live_screen import LiveScreen
from torchrl_ckpt.launcher.display.plain_screen import PlainScreen
from torchrl_ckpt.run.json_lines import Tail
from torchrl_ckpt.run.progress import Level, ProgressMessage, ProgressTail, TaskUpdate

PLAIN_VARIABLE = "TORCHRL_CKPT_PLAIN"
"""The environment variable that asks for plain lines in a terminal too."""

_SECONDS_BETWEEN_REFRESHES = 0.25


class Screen(Protocol):
    """Shows what happens, as it happens."""

    def metrics(self, row: Mapping[str, Any]) -> None: ...

    def task(self, update: TaskUpdate) -> None: ...

    def message(self, message: ProgressMessage) -> None: ...

    def refresh(self) -> None: ...

    def close(self) -> None: ...


class Display:
    """Shows an attempt from its start to its `finish`.

    `tasks` are the components that count steps, with their last step; `start` is the step that
    they go on from. Rows that `metrics_path` holds already are of earlier attempts and not shown.
    """

    def __init__(
        self,
        title: str,
        metrics_path: Path,
        progress_path: Path,
        *,
        tasks: Mapping[str, int],
        start: int = 0,
        plain: bool = False,
    ) -> None:
        self._metrics = Tail(metrics_path, skip_existing=True)
        self._progress = ProgressTail(progress_path)
        self._refreshed = float("-inf")
        self._console = _LastingConsole(highlight=False)
        plain = plain or bool(os.environ.get(PLAIN_VARIABLE))
        self._finished = False
        self._screen: Screen
        if plain or not (self._console.is_interactive and self._console.file.isatty()):
            self._screen = PlainScreen(self._console, title, tasks)
        else:
            self._screen = LiveScreen(self._console, title, tasks, start)

    def refresh(self) -> None:
        """Show what is new, at most a few times a second however often it is called."""
        if time.monotonic() >= self._refreshed + _SECONDS_BETWEEN_REFRESHES:
            self._show_what_is_new()
            self._refreshed = time.monotonic()

    def message(self, text: str, level: Level = "info") -> None:
        """Tell the person what the runner itself has to say, after all that came before."""
        self._show_what_is_new()
        self._screen.message(ProgressMessage(time.time(), "", text, level))

    def finish(self, summary: Sequence[str] = ()) -> None:
        """Show the last of what happened, take the bars away and leave `summary`."""
        if self._finished:
            return
        self._finished = True
        self._show_what_is_new()
        self._screen.close()
        for line in summary:
            self._console.print(Text(line), soft_wrap=True)

    def __enter__(self) -> Display:
        return self

    def __exit__(self, *exception: object) -> None:
        self.finish()

    def _show_what_is_new(self) -> None:
        rows = [(row["time"], row) for row in self._metrics.read()]
        events = [(event.time, event) for event in self._progress.read()]
        for _, news in sorted([*rows, *events], key=lambda timed: timed[0]):
            if isinstance(news, TaskUpdate):
                self._screen.task(news)
            elif isinstance(news, ProgressMessage):
                self._screen.message(news)
            else:
                self._screen.metrics(news)
        self._screen.refresh()


class _LastingConsole(Console):
    """Goes on in silence when nobody reads any more, as behind `| head`."""

    def on_broken_pipe(self) -> None:
        self.quiet = True
        devnull = os.open(os.devnull, os.O_WRONLY)
        os.dup2(devnull, sys.stdout.fileno())
        os.close(devnull)
