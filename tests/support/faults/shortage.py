"""What a process may run out of, from one moment on."""

from __future__ import annotations

import os
import resource
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Literal

from tests.support.faults import small_disk

Shortage = Literal["disk", "inodes", "descriptors", "memory"]

SHORTAGES: tuple[Shortage, ...] = ("disk", "inodes", "descriptors", "memory")

NAMES: dict[Shortage, str] = {
    "disk": "full disk",
    "inodes": "no inodes left",
    "descriptors": "no descriptors left",
    "memory": "no memory left",
}
"""As the table of results names them."""


def begin(shortage: Shortage, processes: Sequence[int], disk: Path) -> None:
    """Let the processes run out of it; `disk` is the small disk that they write to.

    Descriptors and memory are limited for each process (`RLIMIT_NOFILE`, `RLIMIT_AS`) to what it
    has now: the next `open` fails with EMFILE and the next growth of its memory with ENOMEM.
    """
    match shortage:
        case "disk":
            small_disk.fill(disk)
        case "inodes":
            small_disk.use_up_inodes(disk)
        case "descriptors":
            for process in processes:
                _limit(process, resource.RLIMIT_NOFILE, _first_free_descriptor(process))
        case "memory":
            for process in processes:
                _limit(process, resource.RLIMIT_AS, _address_space_bytes(process))


def end(shortage: Shortage, disk: Path) -> None:
    """Give the disk back. The limits of a process end with it."""
    if shortage in ("disk", "inodes"):
        small_disk.free(disk)


def _limit(process: int, kind: int, limit: int) -> None:
    with suppress(ProcessLookupError):
        hard = resource.prlimit(process, kind)[1]
        resource.prlimit(process, kind, (limit, hard))


def _first_free_descriptor(process: int) -> int:
    with suppress(FileNotFoundError):
        used = {int(name) for name in os.listdir(f"/proc/{process}/fd")}
        return next(number for number in range(len(used) + 1) if number not in used)
    return 0


def _address_space_bytes(process: int) -> int:
    with suppress(FileNotFoundError):
        pages = int(Path(f"/proc/{process}/statm").read_text().split()[0])
        return pages * resource.getpagesize()
    return 0
