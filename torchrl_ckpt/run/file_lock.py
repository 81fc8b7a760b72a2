"""A lock on a file. The kernel releases it however the process that holds it ends."""

from __future__ import annotations

import errno
import fcntl
import os
import stat
from pathlib import Path
from typing import Self

_MAX_HOLDER_CHARACTERS = 10_000


class LockFile:
    """The file at `path`, opened to be locked, and created if need be.

    Leaving the block closes it, which releases the lock. The constructor raises `OSError`, also for
    a link, a FIFO or a device: the directory may be somebody else's, and the file is written to.
    """

    def __init__(self, path: Path) -> None:
        # Open for writing: NFS grants an exclusive lock on no other file.
        flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        descriptor = os.open(path, flags, 0o666)
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            os.close(descriptor)
            raise OSError(errno.EINVAL, "a FIFO or a device is in the place of the lock", str(path))
        self._file = os.fdopen(descriptor, "a+", errors="replace")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self._file.close()

    def take(self, kind: int) -> bool:
        """Take the lock if it is free, and return whether it was.

        `kind` is `fcntl.LOCK_EX` for one holder, `fcntl.LOCK_SH` for several.
        """
        try:
            fcntl.flock(self._file, kind | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True

    def wait(self) -> None:
        """Take the lock for one holder as soon as it is free."""
        fcntl.flock(self._file, fcntl.LOCK_EX)

    def write_holder(self, text: str) -> None:
        """Write `text`, which names the holder, to the file."""
        self._file.truncate(0)
        self._file.write(text)
        self._file.flush()

    def holder(self) -> str:
        """Return the first line of what a holder has written; empty if none has."""
        self._file.seek(0)
        return self._file.readline(_MAX_HOLDER_CHARACTERS).strip()

    def fileno(self) -> int:
        return self._file.fileno()
