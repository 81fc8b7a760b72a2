"""Damage to files that are already on disk: flipped bits, lost ends, vanished and foreign files."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def flip_bit(path: Path, bit: int) -> None:
    """Flip the `bit`-th bit of a file; doing it twice changes nothing."""
    with open(path, "r+b") as file:
        file.seek(bit // 8)
        byte = file.read(1)[0]
        file.seek(bit // 8)
        file.write(bytes([byte ^ (1 << bit % 8)]))


@contextmanager
def flipped(path: Path, bit: int) -> Iterator[None]:
    flip_bit(path, bit)
    yield
    flip_bit(path, bit)


@contextmanager
def truncated(path: Path, size: int) -> Iterator[None]:
    whole = path.read_bytes()
    os.truncate(path, size)
    yield
    path.write_bytes(whole)


def bits(path: Path, sample: int | None) -> range:
    """The positions of a file's bits: all of them, or about `sample` at even distances, the first
    included."""
    count = path.stat().st_size * 8
    return range(0, count, 1 if sample is None else max(1, count // sample))
