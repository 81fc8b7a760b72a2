"""Output of the `ckpt` commands: tables and JSON on standard output, progress on standard error."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from torchrl_ckpt.cli.terminal import harmless
from torchrl_ckpt.plugin_api.checkpoint_backends import Advance

_WIDE = 200


class _HarmlessConsole(Console):
    def render_str(self, text: str, **options: Any) -> Text:
        return super().render_str(harmless(text), **options)


def console() -> Console:
    """Return a console for standard output, which writes control characters in texts out.

    Where that is no terminal, the console is wide, so that `grep` finds a table's row in one line.
    """
    width = None if sys.stdout.isatty() else _WIDE
    return _HarmlessConsole(highlight=False, markup=False, soft_wrap=True, width=width)


def table(*columns: str, right: tuple[str, ...] = ()) -> Table:
    """Return a table without borders; the columns named in `right` are aligned to the right."""
    result = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for column in columns:
        result.add_column(column, justify="right" if column in right else "left", overflow="fold")
    return result


def print_json(value: Any) -> None:
    """Print `value` as JSON. NaN and infinities, which JSON lacks, become strings for `float()`."""
    print(json.dumps(_without_nonfinite(value), indent=1, default=str, allow_nan=False))


def age(seconds: float) -> str:
    """Format an age in the largest unit that fits, such as `5 min`."""
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= length:
            return f"{seconds / length:.0f} {unit}"
    return f"{max(seconds, 0):.0f} s"


@contextmanager
def byte_progress(label: str, num_bytes: int) -> Iterator[Advance]:
    """Show a progress bar on standard error while it is entered, if that is a terminal.

    Yields the progress callback: it takes the number of bytes just processed.
    """
    columns = (TextColumn(label), BarColumn(), DownloadColumn(), TimeRemainingColumn())
    screen = Console(stderr=True)
    with Progress(
        *columns, console=screen, transient=True, disable=not screen.is_terminal
    ) as progress:
        task = progress.add_task(label, total=num_bytes)
        yield lambda number: progress.advance(task, number)


def _without_nonfinite(value: Any) -> Any:
    match value:
        case dict():
            return {key: _without_nonfinite(item) for key, item in value.items()}
        case list() | tuple():
            return [_without_nonfinite(item) for item in value]
        case float() if not math.isfinite(value):
            return str(value)
    return value
