"""Files with one JSON object per line, appended to and followed by several processes."""

from __future__ import annotations

import errno
import fcntl
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torchrl_ckpt.plugin_api.untrusted_files import open_regular


def append(path: Path, row: Mapping[str, Any]) -> None:
    """Append `row` as one line; lines of several processes never mix.

    Raises `ValueError` for values that JSON cannot represent, such as NaN; `OSError` where the line
    cannot be written whole, and then nothing of it is left in the file.
    """
    line = json.dumps(row, separators=(", ", ": "), allow_nan=False).encode() + b"\n"
    descriptor = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o644)
    with open(descriptor, "ab+", buffering=0) as file:
        # The lock keeps others from appending to a part of a line, which is cut off again.
        fcntl.flock(file, fcntl.LOCK_EX)
        size = file.seek(0, os.SEEK_END)
        if size and os.pread(file.fileno(), 1, size - 1) != b"\n":
            line = b"\n" + line  # After what a power failure has left of a line.
        try:
            if file.write(line) < len(line):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        except OSError:
            file.truncate(size)
            raise


def parse(line: bytes) -> dict[str, Any] | None:
    """Return the object of one line, or None if a crash has truncated the line."""
    if not line.endswith(b"\n"):
        return None
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
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
            with open_regular(self._path) as file:
                file.seek(self._position)
                data = file.readall()
        except FileNotFoundError:
            return []
        whole = data[: data.rfind(b"\n") + 1]
        self._position += len(whole)
        return [row for line in whole.splitlines(keepends=True) if (row := parse(line)) is not None]
