"""Opens and reads files that somebody else may have made, such as those of a copied checkpoint.

A link, a FIFO or a device in place of a file is refused before it is read: a FIFO would block for
ever, and a link leads elsewhere. No more is read than was promised.
"""

from __future__ import annotations

import errno
import json
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from io import FileIO
from pathlib import Path
from typing import Any


@contextmanager
def open_regular(path: Path) -> Iterator[FileIO]:
    """Open the regular file at `path` for reading, unbuffered.

    Raises `OSError` for anything else, links among them. Nothing is waited for.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.ENXIO):  # A link; a socket.
            raise _not_a_file(path) from None
        raise
    with FileIO(descriptor, "rb") as file:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise _not_a_file(path)
        yield file


@contextmanager
def open_below(root: Path, relative: str) -> Iterator[FileIO]:
    """Open the regular file `root/relative` as `open_regular` does.

    No directory between the two may be a link either. Raises `OSError`.
    """
    path = root
    for name in relative.split("/")[:-1]:
        path /= name
        if path.is_symlink():
            raise OSError(errno.EINVAL, f"{name} is a link, not a directory", str(path))
    with open_regular(root / relative) as file:
        yield file


def read_bounded(path: Path, max_bytes: int) -> bytes:
    """Read the regular file at `path`. Raises `OSError`, also for more than `max_bytes`."""
    with open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
        if size > max_bytes:
            raise OSError(errno.EFBIG, f"it has {size} bytes, more than {max_bytes}", str(path))
        # A file that grows meanwhile is cut off: what then is missing is found by whoever parses.
        content = bytearray()
        while len(content) < size and (chunk := file.read(size - len(content))):
            content += chunk
    return bytes(content)


def read_bounded_json(path: Path, max_bytes: int) -> Any:
    """Read JSON from the regular file at `path`.

    Raises `OSError` as `read_bounded` does, and `ValueError` for what is not JSON or nested too
    deep.
    """
    try:
        return json.loads(read_bounded(path, max_bytes))
    except RecursionError:
        raise ValueError("it is nested too deep") from None


def is_below(root: Path, path: Path) -> bool:
    """Whether `path` is `root` or below it, once links are followed."""
    try:
        return path.resolve().is_relative_to(root.resolve())
    except (OSError, RuntimeError, ValueError):  # A circle of links; a zero byte.
        return False


def _not_a_file(path: Path) -> OSError:
    return OSError(errno.EINVAL, "it is a link, a FIFO or a device, not a file", str(path))
