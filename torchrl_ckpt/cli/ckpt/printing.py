"""How the `ckpt` commands print: tables and JSON on standard output, progress beside it."""

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

from torchrl_ckpt.plugin_api.checkpoint_backends import Advance

_WIDE = 200


def console() -> Console:
    """Where there is no terminal, a line of a table stays a line, for grep's sake."""
    width = None if sys.stdout.isatty() else _WIDE
    return Console(highlight=False, markup=False, soft_wrap=True, width=width)


def table(*columns: str, right: tuple[str, ...] = ()) -> Table:
    """An open table; the columns named in `right` hold numbers."""
    result = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for column in columns:
        result.add_column(column, justify="right" if column in right else "left", overflow="fold")
    return result


def print_json(value: Any) -> None:
    """JSON has no word for NaN and the infinities: they become strings, which `float()` reads."""
    print(json.dumps(_writable(value), indent=1, default=str, allow_nan=False))


def age(seconds: float) -> str:
    """Such as `5 min`, in the largest unit that fits."""
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= length:
            return f"{seconds / length:.0f} {unit}"
    return f"{max(seconds, 0):.0f} s"


@contextmanager
def byte_progress(what: str, total: int) -> Iterator[Advance]:
    """A bar on standard error, if that is a terminal, that is gone when all is done."""
    columns = (TextColumn(what), BarColumn(), DownloadColumn(), TimeRemainingColumn())
    screen = Console(stderr=True)
    with Progress(
        *columns, console=screen, transient=True, disable=not screen.is_terminal
    ) as progress:
        task = progress.add_task(what, total=total)
        yield lambda number: progress.advance(task, number)


def _writable(value: Any) -> Any:
    match value:
        case dict():
            return {key: _writable(item) for key, item in value.items()}
        case list() | tuple():
            return [_writable(item) for item in value]
        case float() if not math.isfinite(value):
            return str(value)
    return value
