"""One process's share of a checkpoint: its files, then `part.json`: now they are whole."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from pathlib import Path

from torchrl_ckpt.checkpoint.layout import PART, REQUEST, Layout
from torchrl_ckpt.contracts import FileRecord
from torchrl_ckpt.durable import make_directory, read_json, record_json
from torchrl_ckpt.errors import CheckpointDamaged


def open_part(partial: Path, component: str) -> Path:
    """The directory for `component`'s files in a checkpoint being written."""
    directory = partial / component
    make_directory(directory)
    return directory


def finish_part(directory: Path, records: Iterable[FileRecord]) -> None:
    """Declare the part whole. Nothing may be written below `directory` afterwards."""
    files = sorted((asdict(record) for record in records), key=lambda file: file["path"])
    record_json(directory, PART, {"files": files})


def read_part(directory: Path) -> list[FileRecord] | None:
    """The files of a finished part, or None while it is being written."""
    try:
        part = read_json(directory / PART)
    except FileNotFoundError:
        return None
    except json.JSONDecodeError:
        return None  # Its only write is under way.
    return [FileRecord(**file) for file in part["files"]]


def requests_for(layout: Layout, component: str) -> Iterator[tuple[int, Path]]:
    """Checkpoints under way that still want `component`'s part: step and directory."""
    for step, partial in layout.partials().items():
        try:
            request = read_json(partial / REQUEST)
        except (FileNotFoundError, json.JSONDecodeError):
            continue
        if component in request["parts"] and not (partial / component / PART).exists():
            yield step, partial


def check_sizes(directory: Path, records: Iterable[FileRecord]) -> None:
    """Raise `CheckpointDamaged` for a file that is not as long as was written."""
    for record in records:
        path = directory / record.path
        size = path.stat().st_size if path.is_file() else -1
        if size != record.size:
            found = "is missing" if size < 0 else f"has {size} bytes"
            raise CheckpointDamaged(f"{path} {found}, but {record.size} bytes were written")
