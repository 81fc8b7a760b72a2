"""Lists what is in a checkpoint directory, committed or not, without reading a tensor."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from torchrl_ckpt.checkpoint.layout import PART, Layout, step_in_name
from torchrl_ckpt.checkpoint.manifest import read_manifest
from torchrl_ckpt.plugin_api.errors import CheckpointDamaged, CheckpointMismatch

EntryState = Literal[
    "committed", "damaged", "other format", "partial", "quarantined", "deleting", "replaced"
]


@dataclass(frozen=True)
class Entry:
    """A checkpoint, whole or not. `created` is in seconds since the epoch, `size` in bytes.

    Its state is `damaged` if the manifest cannot be read; other damage only verification finds.
    `other format`: another version of torchrl-ckpt wrote it.
    """

    step: int
    state: EntryState
    path: Path
    created: float
    size: int
    parts: tuple[str, ...]
    """The processes whose part is whole."""
    newest: bool = False
    """Whether `--ckpt.resume-step latest` would try it first."""


def list_entries(layout: Layout, *, last: int | None = None) -> list[Entry]:
    """List everything in `layout`, by step; of the committed steps only the `last` few, if
    given."""
    named = list(layout.named().items())
    entries = [
        *_entries("committed", named[-last:] if last else named),
        *_entries("partial", layout.partials().items()),
        *_entries("deleting", layout.deletions().items()),
        *_entries("replaced", layout.replacements().items()),
        *_entries("quarantined", _quarantined(layout)),
    ]
    newest = layout.newest()
    marked = (
        replace(entry, newest=entry.path == layout.step(entry.step) and entry.step == newest)
        for entry in entries
    )
    return sorted(marked, key=lambda entry: entry.step)


def _quarantined(layout: Layout) -> Iterator[tuple[int, Path]]:
    for path in layout.quarantined():
        if (step := step_in_name(path.name)) is not None:
            yield step, path


def _entries(state: EntryState, found: Iterable[tuple[int, Path]]) -> Iterator[Entry]:
    for step, path in found:
        try:
            yield _committed(step, path) if state == "committed" else _other(state, step, path)
        except FileNotFoundError:
            continue  # A running job has just renamed or removed it.


def _committed(step: int, path: Path) -> Entry:
    try:
        manifest = read_manifest(path)
    except CheckpointDamaged:
        return _other("damaged", step, path)
    except CheckpointMismatch:
        return _other("other format", step, path)
    created = manifest.metadata["created"]
    return Entry(step, "committed", path, created, manifest.size, manifest.parts)


def _other(state: EntryState, step: int, path: Path) -> Entry:
    # Links are not followed: somebody else may have made them, and they lead anywhere.
    parts: list[str] = []
    size = 0
    for parent, _, files in os.walk(path) if not path.is_symlink() else ():
        size += sum(os.lstat(os.path.join(parent, name)).st_size for name in files)
        if PART in files and Path(parent).parent == path:
            parts.append(os.path.basename(parent))
    return Entry(step, state, path, path.lstat().st_mtime, size, tuple(sorted(parts)))
