"""A small file system that can be filled: a tmpfs, which only root may mount."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache, partial
from pathlib import Path

_MAX_FILLED_BYTES = 1 << 30  # Never fill a disk that others need.
_FILLER = ".filler"


@cache
def unavailable() -> str | None:
    """Return why no small disk can be mounted here, or None if it can."""
    if shutil.which("mount") is None:
        return "there is no `mount` here"
    with tempfile.TemporaryDirectory() as name:
        mounted = _mount(Path(name), "1m", None)
        if mounted.returncode == 0:
            subprocess.run(["umount", name], check=True)
    return f"no tmpfs can be mounted here: {mounted.stderr.strip()}" if mounted.returncode else None


@contextmanager
def small_disk(directory: Path, size: str, inodes: int | None = None) -> Iterator[Path]:
    """Mount a disk of `size`, as `mount` writes it, at the new `directory`, with room for `inodes`
    files and directories or as many as the kernel's default."""
    directory.mkdir(parents=True)
    _mount(directory, size, inodes).check_returncode()
    try:
        yield directory
    finally:
        subprocess.run(["umount", "--lazy", str(directory)], check=True)


def fill(disk: Path) -> None:
    """Leave not a byte on `disk`, which a small disk is the root of."""
    assert shutil.disk_usage(disk).total <= _MAX_FILLED_BYTES
    with open(disk / _FILLER, "ab", buffering=0) as filler:
        for size in (1 << 20, 1 << 12):
            while _fits(partial(filler.write, bytes(size))):
                pass


def use_up_inodes(disk: Path) -> None:
    """Leave no inode for another file on `disk`, which a small disk is the root of."""
    assert os.statvfs(disk).f_files <= 1 << 16
    directory = disk / f"{_FILLER}s"
    if not _fits(partial(directory.mkdir, exist_ok=True)):
        return
    number = 0
    while _fits((directory / str(number)).touch):
        number += 1


def free(disk: Path) -> None:
    """Undo `fill` and `use_up_inodes`."""
    (disk / _FILLER).unlink(missing_ok=True)
    shutil.rmtree(disk / f"{_FILLER}s", ignore_errors=True)


def _fits(write: Callable[[], object]) -> bool:
    try:
        write()
    except OSError:
        return False
    return True


def _mount(directory: Path, size: str, inodes: int | None) -> subprocess.CompletedProcess[str]:
    options = f"size={size}" + (f",nr_inodes={inodes}" if inodes else "")
    return subprocess.run(
        ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(directory)],
        capture_output=True,
        text=True,
        check=False,
    )
