"""What lies in a checkpoint directory: committed or not, read without opening a tensor."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from torchrl_ckpt.checkpoint.layout import PART, Layout
from torchrl_ckpt.checkpoint.manifest import read_manifest
from torchrl_ckpt.plugin_api.errors import CheckpointDamaged

State = Literal["committed", "damaged", "partial", "quarantined", "deleting", "replaced"]


@dataclass(frozen=True)
class Entry:
    """A checkpoint, whole or not. `created` is in seconds since the epoch, `size` in bytes.

    `damaged` is one whose manifest cannot be read; only verifying shows what else there is.
    """

    step: int
    state: State
    path: Path
    created: float
    size: int
    parts: tuple[str, ...]
    """The processes whose share is whole."""
    newest: bool = False
    """Whether a resume from `latest` would try it first."""


def list_entries(layout: Layout, *, last: int | None = None) -> list[Entry]:
    """Everything in `layout`, by step; of the committed only the `last` so many, if given."""
    named = list(layout.named().items())
    entries = [
        *_entries("committed", named[-last:] if last else named),
        *_entries("partial", layout.partials().items()),
        *_entries("deleting", layout.deletions().items()),
        *_entries("replaced", layout.replacements().items()),
        *_entries("quarantined", ((_step(path), path) for path in layout.quarantined())),
    ]
    newest = layout.newest()
    marked = (
        replace(entry, newest=entry.path == layout.step(entry.step) and entry.step == newest)
        for entry in entries
    )
    return sorted(marked, key=lambda entry: entry.step)


def _entries(state: State, found: Iterable[tuple[int, Path]]) -> Iterator[Entry]:
    for step, path in found:
        try:
            yield _committed(step, path) if state == "committed" else _other(state, step, path)
        except FileNotFoundError:
            continue  # A run that is going on has just renamed or removed it.


def _committed(step: int, path: Path) -> Entry:
    try:
        manifest = read_manifest(path)
    except CheckpointDamaged:
        return _other("damaged", step, path)
    created = manifest.metadata["created"]
    return Entry(step, "committed", path, created, manifest.size, manifest.parts)


def _other(state: State, step: int, path: Path) -> Entry:
    size = sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
    parts = tuple(sorted(part.parent.name for part in path.glob(f"*/{PART}")))
    return Entry(step, state, path, path.stat().st_mtime, size, parts)


def _step(path: Path) -> int:
    """Of `step_25`, or of `step_25.2`, which is the second that was quarantined."""
    return int(path.name.removeprefix("step_").partition(".")[0])
