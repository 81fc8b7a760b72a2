"""One process's part of a checkpoint: its files, and then `part.json`, which declares them
whole."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path

from torchrl_ckpt.checkpoint.layout import PART, REFUSAL, REQUEST, Layout
from torchrl_ckpt.checkpoint.stored_json import (
    NotJson,
    PlainName,
    Step,
    StoredFiles,
    StoredModel,
    read_stored,
)
from torchrl_ckpt.plugin_api.checkpoint_backends import FileRecord
from torchrl_ckpt.plugin_api.durable_files import record_json, write_json
from torchrl_ckpt.plugin_api.errors import CheckpointDamaged, CheckpointFailed


class _Request(StoredModel):
    step: Step
    parts: list[PlainName]


class _Part(StoredModel):
    files: StoredFiles


class _Refusal(StoredModel):
    component: PlainName
    reason: str


def open_part(partial: Path, component: str) -> Path:
    """Create the directory for `component`'s files in a partial checkpoint and return it.

    Raises `FileExistsError` where somebody else writes the part.
    """
    directory = partial / component
    directory.mkdir()
    return directory


def finish_part(directory: Path, records: Iterable[FileRecord]) -> None:
    """Declare the part whole. Nothing may be written below `directory` afterwards."""
    files = sorted((asdict(record) for record in records), key=lambda file: file["path"])
    record_json(directory, PART, {"files": files})


def refuse_part(partial: Path, component: str, reason: str) -> None:
    """Record that `component` cannot write its part, so that the trainer stops waiting for it.

    A full disk may not even have room for that; then the request is removed, which needs no room.
    """
    with suppress(FileNotFoundError):  # The trainer may have given the checkpoint up already.
        shutil.rmtree(partial / component, ignore_errors=True)
        try:
            write_json(partial / REFUSAL, {"component": component, "reason": reason})
        except OSError:
            (partial / REQUEST).unlink()


def read_part(partial: Path, component: str) -> list[FileRecord] | None:
    """Return the files of a finished part, or None while it is being written.

    Raises `CheckpointFailed` where `component` has given it up, and `CheckpointDamaged` for a
    malformed one.
    """
    with suppress(FileNotFoundError):
        refusal = read_stored(partial / REFUSAL, _Refusal)
        raise CheckpointFailed(
            f"the {refusal.component} could not write its part: {refusal.reason}"
        )
    try:
        part = read_stored(partial / component / PART, _Part)
    except FileNotFoundError:
        if not (partial / REQUEST).exists():
            raise CheckpointFailed(
                f"the {component} could not write its part; its log says why"
            ) from None
        return None
    except NotJson:
        return None  # It is being written.
    return [file.record for file in part.files]


def is_asked(partial: Path, component: str) -> bool:
    """Whether the request in `partial` asks `component` for its part.

    Raises `CheckpointDamaged` and `FileNotFoundError`.
    """
    return component in read_stored(partial / REQUEST, _Request).parts


def requests_for(layout: Layout, component: str) -> Iterator[tuple[int, Path]]:
    """Yield step and directory of each partial checkpoint that waits for `component`'s part."""
    for step, partial in layout.partials().items():
        try:
            asked = is_asked(partial, component)
        except (FileNotFoundError, NotJson):
            continue
        answered = (partial / component / PART).exists() or (partial / REFUSAL).exists()
        if asked and not answered:
            yield step, partial


def check_sizes(directory: Path, records: Iterable[FileRecord]) -> None:
    """Raise `CheckpointDamaged` for a file that is missing or not as long as was written."""
    for record in records:
        path = directory / record.path
        size = path.lstat().st_size if path.is_file() and not path.is_symlink() else -1
        if size != record.size:
            found = "is missing" if size < 0 else f"has {size} bytes"
            raise CheckpointDamaged(f"{path} {found}, but {record.size} bytes were written")
