"""The display of a run: live progress bars in a terminal, plain lines elsewhere.

It follows `metrics.jsonl` and `progress.jsonl`, which the job's processes write anyway, so that no
process has to send it anything.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import IO, Any, Protocol, cast

from rich.console import Console
from rich.text import Text

from torchrl_ckpt.launcher.display.live_screen import LiveScreen
from torchrl_ckpt.launcher.display.plain_screen import PlainScreen
from torchrl_ckpt.run.directory import RunDirectory
from torchrl_ckpt.run.json_lines import Tail
from torchrl_ckpt.run.progress import Level, ProgressMessage, ProgressTail, TaskUpdate

PLAIN_VARIABLE = "TORCHRL_CKPT_PLAIN"
"""The environment variable that selects plain lines in a terminal, too."""

_REFRESH_INTERVAL_SECONDS = 0.25


class Screen(Protocol):
    """Draws events as they come."""

    def show_metrics(self, row: Mapping[str, Any]) -> None: ...

    def show_task(self, update: TaskUpdate) -> None: ...

    def show_message(self, message: ProgressMessage) -> None: ...

    def refresh(self) -> None: ...

    def close(self) -> None: ...


class Display:
    """Shows one attempt of a run until `finish`.

    `last_steps` maps each component that counts steps to its last step; `start_step` is the step
    that they start from. Rows that are in the metrics file already belong to earlier attempts and
    are not shown.
    """

    def __init__(
        self,
        title: str,
        run: RunDirectory,
        *,
        last_steps: Mapping[str, int],
        start_step: int = 0,
        plain: bool = False,
    ) -> None:
        self._metrics = Tail(run.metrics, skip_existing=True)
        self._progress = ProgressTail(run.progress)
        self._last_refresh = float("-inf")
        self._console = Console(file=cast(IO[str], _LossyOutput()), highlight=False)
        self._finished = False
        self._screen: Screen
        is_terminal = self._console.is_interactive and self._console.file.isatty()
        if plain or os.environ.get(PLAIN_VARIABLE) or not is_terminal:
            self._screen = PlainScreen(self._console, title, last_steps)
        else:
            self._screen = LiveScreen(self._console, title, last_steps, start_step)

    def refresh(self) -> None:
        """Show new events. Frequent calls are cheap: it acts only every quarter of a second."""
        if time.monotonic() >= self._last_refresh + _REFRESH_INTERVAL_SECONDS:
            self._show_new_events()
            self._last_refresh = time.monotonic()

    def message(self, text: str, level: Level = "info") -> None:
        """Show a message of the launcher, after all events that came before it."""
        self._show_new_events()
        self._screen.show_message(ProgressMessage(time.time(), "", text, level))

    def finish(self, summary: Sequence[str] = ()) -> None:
        """Show the last events, remove the bars and print the lines of `summary`."""
        if self._finished:
            return
        self._finished = True
        self._show_new_events()
        self._screen.close()
        for line in summary:
            self._console.print(Text(line), soft_wrap=True)

    def __enter__(self) -> Display:
        return self

    def __exit__(self, *exception: object) -> None:
        self.finish()

    def _show_new_events(self) -> None:
        rows = [(row["time"], row) for row in self._metrics.read()]
        events = [(event.time, event) for event in self._progress.read()]
        for _, event in sorted([*rows, *events], key=lambda timed: timed[0]):
            if isinstance(event, TaskUpdate):
                self._screen.show_task(event)
            elif isinstance(event, ProgressMessage):
                self._screen.show_message(event)
            else:
                self._screen.show_metrics(event)
        self._screen.refresh()


class _LossyOutput:
    """Standard output; once it cannot be written to, text is dropped and nothing is raised.

    Its reader may have gone, as with `| head`, its terminal may be closed, or its disk full.
    """

    def __init__(self) -> None:
        self._stream = sys.stdout  # A live screen puts something of its own in its place.

    def write(self, text: str) -> int:
        self._try(lambda: self._stream.write(text))
        return len(text)

    def flush(self) -> None:
        self._try(self._stream.flush)

    def isatty(self) -> bool:
        return self._stream.isatty()

    def fileno(self) -> int:
        return self._stream.fileno()

    @property
    def encoding(self) -> str:
        return self._stream.encoding

    def _try(self, action: Callable[[], object]) -> None:
        try:
            action()
        except OSError:
            devnull = os.open(os.devnull, os.O_WRONLY)
            os.dup2(devnull, self._stream.fileno())
            os.close(devnull)
