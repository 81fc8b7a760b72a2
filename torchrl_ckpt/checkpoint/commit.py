"""The one place where a checkpoint comes to be: a request, whole parts, a manifest, one rename."""

from __future__ import annotations

import functools
import json
import logging
import os
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path

from torchrl_ckpt.checkpoint.layout import PART, REQUEST, Layout
from torchrl_ckpt.checkpoint.manifest import write_manifest
from torchrl_ckpt.checkpoint.part import check_sizes, read_part
from torchrl_ckpt.plugin_api.checkpoint_backends import FileRecord
from torchrl_ckpt.plugin_api.durable_files import (
    digest_file,
    fsync_directory,
    fsync_file,
    make_directory,
)
from torchrl_ckpt.plugin_api.errors import CheckpointFailed
from torchrl_ckpt.plugin_api.plugin import Json
from torchrl_ckpt.run.polling import Deadline, wait_for

_log = logging.getLogger(__name__)


def request(layout: Layout, step: int, parts: Sequence[str]) -> Path:
    """Ask every process named in `parts` for its share of step `step`; returns where to put it.

    Training waits for this, and what is not committed need not outlast a power failure: nothing is
    synced before `commit`.
    """
    partial = layout.partial(step)
    if partial.exists():
        shutil.rmtree(partial)
    make_directory(layout.root)
    partial.mkdir()
    (partial / REQUEST).write_text(json.dumps({"step": step, "parts": list(parts)}))
    return partial


def wait_for_parts(partial: Path, parts: Sequence[str], timeout: float) -> list[FileRecord]:
    """Return the files of all `parts`, relative to `partial`, once every part is whole.

    Raises `CheckpointFailed` where one of them cannot be written, `WaitTimeout` after `timeout`
    seconds.
    """
    deadline = Deadline(timeout, "ckpt.timeout")
    records: list[FileRecord] = []
    for part in parts:
        awaited = f"the {part}'s part of {partial.name}"
        files = wait_for(functools.partial(read_part, partial, part), awaited, deadline)
        records += [replace(file, path=f"{part}/{file.path}") for file in files]
    return records


def commit(
    layout: Layout,
    step: int,
    parts: Sequence[str],
    records: Sequence[FileRecord],
    about: Mapping[str, Json],
) -> Path:
    """Make the partial checkpoint of `step` the committed one, in a single rename.

    An earlier one of the same step waits out of sight for the next prune to remove it.
    """
    partial = layout.partial(step)
    check_sizes(partial, records)
    fsync_file(partial / REQUEST)
    own = [REQUEST, *(f"{part}/{PART}" for part in parts)]
    files = [*records, *(FileRecord(path, *digest_file(partial / path)) for path in own)]
    files.sort(key=lambda file: file.path)
    write_manifest(
        partial,
        {
            **about,
            "step": step,
            "parts": list(parts),
            "created": time.time(),
            "files": [asdict(file) for file in files],
        },
    )
    committed, replaced = layout.step(step), layout.replaced(step)
    if committed.exists():
        # The step is saved again, after a resume from an earlier one. Should this process die
        # before the new one is in its place, `recover` puts the old one back.
        os.rename(committed, replaced)
    try:
        fsync_directory(layout.root)
        os.rename(partial, committed)
    except OSError:
        if replaced.exists():
            os.rename(replaced, committed)
        raise
    fsync_directory(layout.root)
    return committed


def out_of_sight(layout: Layout, step: int) -> None:
    """Take a committed step away in one rename; its files go later."""
    target = layout.deleting(step)
    if target.exists():
        shutil.rmtree(target)
    os.rename(layout.step(step), target)
    fsync_directory(layout.root)


def recover(layout: Layout) -> None:
    """Bring the directory to rest after an interrupted save or deletion. None may be under way.

    A committed step whose place nobody has taken after all is put back; what is not committed, or
    no longer, is removed.
    """
    for step, path in layout.replacements().items():
        if not layout.step(step).exists():
            os.rename(path, layout.step(step))
            fsync_directory(layout.root)
    for path in layout.leftovers():
        try:
            shutil.rmtree(path)
        except OSError as error:
            _log.warning("could not remove %s, left by an earlier run: %s", path, error)


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
