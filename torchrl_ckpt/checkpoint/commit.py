"""How a checkpoint comes into being: a request, whole parts, a manifest, one rename.

In this order: `check_space` and `request` before the policy of the step is published, then every
process writes its part (`part.py`), then `wait_for_parts` and `commit`. `recover` clears away what
an interrupted save or deletion left behind.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
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

_FORMAT_OVERHEAD = 1.05  # What the file format adds to the tensors.
_RESERVE_BYTES = 4 * 1024 * 1024  # For the rest of what the run writes: state, logs, metrics.

_log = logging.getLogger(__name__)


def check_space(directory: Path, planned_bytes: int) -> None:
    """Raise `CheckpointFailed` unless `planned_bytes` of tensors fit into the free space."""
    existing = next(path for path in (directory, *directory.parents) if path.exists())
    free = shutil.disk_usage(existing).free
    needed = int(planned_bytes * _FORMAT_OVERHEAD) + _RESERVE_BYTES
    if free < needed:
        raise CheckpointFailed(
            f"{directory} has {_mebibytes(free)} free, and the checkpoint needs "
            f"{_mebibytes(needed)}; free some space, or keep fewer checkpoints (`ckpt.keep`)"
        )


def _mebibytes(size: int) -> str:
    return f"{size / 2**20:.1f} MiB"


def request(layout: Layout, step: int, parts: Sequence[str]) -> Path:
    """Ask every process in `parts` for its part of the checkpoint of `step`.

    The committer makes a part that nobody is asked for. Returns the directory of the partial
    checkpoint. Nothing is fsynced: training waits for this, and a checkpoint that is not committed
    need not survive a power failure.
    """
    partial = layout.partial(step)
    if partial.exists():
        shutil.rmtree(partial)
    make_directory(layout.root)
    partial.mkdir()
    (partial / REQUEST).write_text(json.dumps({"step": step, "parts": list(parts)}))
    return partial


def wait_for_parts(
    partial: Path,
    parts: Sequence[str],
    timeout: float,
    on_wait: Callable[[str], object] = lambda part: None,
) -> list[FileRecord]:
    """Return the files of all `parts`, relative to `partial`, once every part is whole.

    `on_wait` is called with the name of a part whenever that is still missing.

    Raises `CheckpointFailed` where one of them cannot be written, `WaitTimeout` after `timeout`
    seconds.
    """
    deadline = Deadline(timeout, "ckpt.timeout")
    records: list[FileRecord] = []
    for part in parts:
        awaited = f"the {part}'s part of {partial.name}"

        def look(part: str = part) -> list[FileRecord] | None:
            if (found := read_part(partial, part)) is None:
                on_wait(part)
            return found

        files = wait_for(look, awaited, deadline)
        records += [replace(file, path=f"{part}/{file.path}") for file in files]
    return records


def commit(
    layout: Layout,
    step: int,
    parts: Sequence[str],
    records: Sequence[FileRecord],
    metadata: Mapping[str, Json],
) -> Path:
    """Make the partial checkpoint of `step` the committed one, in a single rename.

    `records` are the files of all parts; `metadata` goes into the manifest. An earlier checkpoint
    of the same step is renamed to `Layout.replaced`, and the next prune removes it. Raises
    `CheckpointDamaged` for a file that is shorter or longer than was written, or `OSError`; then
    the earlier checkpoint is back in its place.
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
            **metadata,
            "step": step,
            "parts": list(parts),
            "created": time.time(),
            "files": [asdict(file) for file in files],
        },
    )
    committed, replaced = layout.step(step), layout.replaced(step)
    if committed.exists():
        # The step is saved again, after a resume from an earlier one. If this process dies before
        # the rename below, `recover` puts the old checkpoint back.
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


def begin_deletion(layout: Layout, step: int) -> None:
    """Take a committed step off the list in one rename; its files are deleted afterwards."""
    target = layout.deleting(step)
    if target.exists():
        shutil.rmtree(target)
    os.rename(layout.step(step), target)
    fsync_directory(layout.root)


def recover(layout: Layout) -> None:
    """Clear away what an interrupted save or deletion left. No save may be in progress.

    A checkpoint that was to be replaced, and was not, is put back. Partial checkpoints and those
    being deleted are removed.
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
