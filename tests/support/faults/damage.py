"""Damages a checkpoint on disk and checks that `verify` finds the damage."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from torchrl_ckpt.checkpoint.verify import verify
from torchrl_ckpt.plugin_api.errors import CheckpointDamaged


def files_of(checkpoint: Path) -> list[Path]:
    """Return every file of a checkpoint."""
    return sorted(path for path in checkpoint.rglob("*") if path.is_file())


def flip_bit(path: Path, bit: int) -> None:
    """Flip one bit of a file; a second call restores it."""
    with open(path, "r+b") as file:
        file.seek(bit // 8)
        byte = file.read(1)[0]
        file.seek(bit // 8)
        file.write(bytes([byte ^ (1 << bit % 8)]))


@dataclass(frozen=True)
class BitSelection:
    """Which bits of a file to flip: all in a file of at most `max_whole_bytes`, and `num_sampled`
    or a few less, at even distances, in a larger one."""

    max_whole_bytes: int
    num_sampled: int

    def bits(self, path: Path) -> range:
        """Return the positions, counted in bits."""
        size = path.stat().st_size
        # An odd distance reaches every position within a byte.
        sampled = (size * 8 // self.num_sampled) | 1
        return range(0, size * 8, 1 if size <= self.max_whole_bytes else sampled)


def unnoticed_flips(checkpoint: Path, path: Path, selection: BitSelection) -> Iterator[str]:
    """Flip one bit after another; yield those that `verify` does not find or whose file it does
    not name."""
    for bit in selection.bits(path):
        flip_bit(path, bit)
        if not is_named(checkpoint, path):
            yield f"bit {bit} of {path.relative_to(checkpoint)}"
        flip_bit(path, bit)


def unnoticed_cuts(checkpoint: Path, path: Path) -> Iterator[str]:
    """Truncate a file to several lengths, lengthen it, remove it; yield what `verify` overlooks."""
    whole = path.read_bytes()
    for size in sorted({0, 1, len(whole) // 2, len(whole) - 1}):
        os.truncate(path, size)
        if not is_named(checkpoint, path):
            yield f"{path.relative_to(checkpoint)} truncated to {size} bytes"
        path.write_bytes(whole)
    path.write_bytes(whole + b"\0")
    if not is_named(checkpoint, path):
        yield f"{path.relative_to(checkpoint)} with an extra byte"
    path.unlink()
    if not is_named(checkpoint, path):
        yield f"{path.relative_to(checkpoint)} removed"
    path.write_bytes(whole)


def is_named(checkpoint: Path, path: Path) -> bool:
    """Whether `verify` rejects the checkpoint and names this file."""
    try:
        verify(checkpoint)
    except CheckpointDamaged as error:
        return path.relative_to(checkpoint).as_posix() in str(error)
    return False
