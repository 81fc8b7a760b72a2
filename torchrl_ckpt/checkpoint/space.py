"""Is there room for a checkpoint? Asked before the first byte is written."""

from __future__ import annotations

import shutil
from pathlib import Path

from torchrl_ckpt.errors import CheckpointFailed

_OVERHEAD = 1.05  # Of the formats around the tensors.
_RESERVE = 4 * 1024 * 1024  # For what else the run writes: state, logs, metrics.


def check_space(directory: Path, planned_bytes: int) -> None:
    """Raise `CheckpointFailed` where `planned_bytes` of tensors do not fit beside what is there."""
    existing = next(path for path in (directory, *directory.parents) if path.exists())
    free = shutil.disk_usage(existing).free
    needed = int(planned_bytes * _OVERHEAD) + _RESERVE
    if free < needed:
        raise CheckpointFailed(
            f"{directory} has {_mebibytes(free)} free, and the checkpoint needs "
            f"{_mebibytes(needed)}; make room, or keep fewer checkpoints (`ckpt.keep`)"
        )


def _mebibytes(size: int) -> str:
    return f"{size / 2**20:.1f} MiB"
