"""Damage to a checkpoint that is already on disk, and whether `verify` finds it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from torchrl_ckpt.checkpoint.verify import verify
from torchrl_ckpt.plugin_api.errors import CheckpointDamaged


def files_of(checkpoint: Path) -> list[Path]:
    """Every file of a checkpoint."""
    return sorted(path for path in checkpoint.rglob("*") if path.is_file())


def flip_bit(path: Path, bit: int) -> None:
    """Flip the `bit`-th bit of a file; doing it twice changes nothing."""
    with open(path, "r+b") as file:
        file.seek(bit // 8)
        byte = file.read(1)[0]
        file.seek(bit // 8)
        file.write(bytes([byte ^ (1 << bit % 8)]))


@dataclass(frozen=True)
class Thoroughness:
    """How many bits to flip: every one in a file of up to `whole` bytes, about `sample` of them, at
    even distances, in a larger one."""

    whole: int
    sample: int

    def bits(self, path: Path) -> range:
        size = path.stat().st_size
        # An odd distance goes through all positions within a byte.
        return range(0, size * 8, 1 if size <= self.whole else (size * 8 // self.sample) | 1)


def unnoticed_flips(checkpoint: Path, path: Path, how: Thoroughness) -> Iterator[str]:
    """Flip one bit after the other; says which ones `verify` does not find or name."""
    for bit in how.bits(path):
        flip_bit(path, bit)
        if not is_named(checkpoint, path):
            yield f"bit {bit} of {path.relative_to(checkpoint)}"
        flip_bit(path, bit)


def unnoticed_cuts(checkpoint: Path, path: Path) -> Iterator[str]:
    """Cut a file at several lengths, lengthen it, take it away; says what `verify` overlooks."""
    whole = path.read_bytes()
    for size in sorted({0, 1, len(whole) // 2, len(whole) - 1}):
        os.truncate(path, size)
        if not is_named(checkpoint, path):
            yield f"{path.relative_to(checkpoint)} cut to {size} bytes"
        path.write_bytes(whole)
    path.write_bytes(whole + b"\0")
    if not is_named(checkpoint, path):
        yield f"{path.relative_to(checkpoint)} with a byte more"
    path.unlink()
    if not is_named(checkpoint, path):
        yield f"{path.relative_to(checkpoint)} taken away"
    path.write_bytes(whole)


def is_named(checkpoint: Path, path: Path) -> bool:
    """Whether `verify` finds fault with the checkpoint, and with this file."""
    try:
        verify(checkpoint)
    except CheckpointDamaged as error:
        return path.relative_to(checkpoint).as_posix() in str(error)
    return False
