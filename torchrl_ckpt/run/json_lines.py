"""Files of one JSON object a line, which several processes append to and others follow."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def append(path: Path, row: Mapping[str, Any]) -> None:
    """Add `row` as one line, in one write, so that lines of several processes never mix.

    Raises `ValueError` for what JSON cannot hold, NaN among it.
    """
    line = json.dumps(row, separators=(", ", ": "), allow_nan=False).encode() + b"\n"
    descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    try:
        if os.write(descriptor, line) < len(line):
            raise OSError(errno.ENOSPC, "only a part of the line could be written", str(path))
    finally:
        os.close(descriptor)


def parse(line: bytes) -> dict[str, Any] | None:
    """The object of one line; None for a line that a crash has torn."""
    if not line.endswith(b"\n"):
        return None
    try:
        row = json.loads(line)
    except ValueError:
        return None
    return row if isinstance(row, dict) else None


class Tail:
    """Follows a file that grows, and need not be there yet."""

    def __init__(self, path: Path, *, skip_existing: bool = False) -> None:
        self._path = path
        self._position = path.stat().st_size if skip_existing and path.exists() else 0

    def read(self) -> list[dict[str, Any]]:
        """The rows that were completed since the last call."""
        try:
            with open(self._path, "rb") as file:
                file.seek(self._position)
                data = file.read()
        except FileNotFoundError:
            return []
        whole = data[: data.rfind(b"\n") + 1]
        self._position += len(whole)
        return [row for line in whole.splitlines(keepends=True) if (row := parse(line)) is not None]
