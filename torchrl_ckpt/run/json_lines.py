"""Files with one JSON object per line, appended to and followed by several processes."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def append(path: Path, row: Mapping[str, Any]) -> None:
    """Append `row` as one line in a single write, so that lines of several processes never mix.

    Raises `ValueError` for values that JSON cannot represent, such as NaN; `OSError` where the line
    cannot be written whole.
    """
    line = json.dumps(row, separators=(", ", ": "), allow_nan=False).encode() + b"\n"
    descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    try:
        if os.write(descriptor, line) < len(line):
            raise OSError(errno.ENOSPC, "only part of the line was written", str(path))
    finally:
        os.close(descriptor)


def parse(line: bytes) -> dict[str, Any] | None:
    """Return the object of one line, or None if a crash has truncated the line."""
    if not line.endswith(b"\n"):
        return None
    try:
        row = json.loads(line)
    except ValueError:
        return None
    return row if isinstance(row, dict) else None


class Tail:
    """Follow a growing file, which may not exist yet. `skip_existing` starts at its present end."""

    def __init__(self, path: Path, *, skip_existing: bool = False) -> None:
        self._path = path
        self._position = path.stat().st_size if skip_existing and path.exists() else 0

    def read(self) -> list[dict[str, Any]]:
        """Return the rows completed since the last call."""
        try:
            with open(self._path, "rb") as file:
                file.seek(self._position)
                data = file.read()
        except FileNotFoundError:
            return []
        whole = data[: data.rfind(b"\n") + 1]
        self._position += len(whole)
        return [row for line in whole.splitlines(keepends=True) if (row := parse(line)) is not None]
