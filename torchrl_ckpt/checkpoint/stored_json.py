"""JSON files of a checkpoint, which somebody else may have made: bounded, and checked by a model.

A malformed one (too long, nested too deep, a field that is missing or of another type) raises
`CheckpointDamaged`, so that a resume from `latest` steps back to an earlier checkpoint.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from torchrl_ckpt.plugin_api.checkpoint_backends import FileRecord
from torchrl_ckpt.plugin_api.errors import CheckpointDamaged
from torchrl_ckpt.plugin_api.plugin import Json
from torchrl_ckpt.plugin_api.untrusted_files import read_bounded

_MAX_JSON_BYTES = 64 * 1024 * 1024

T = TypeVar("T")


class NotJson(CheckpointDamaged):
    """The file is not JSON, or not yet: whoever writes it may be at work."""


def _is_plain(name: str) -> str:
    """Return `name` if it is one that a directory may have: printable, and not a path."""
    if not name.isprintable() or name in ("", ".", "..") or "/" in name or "\\" in name:
        raise ValueError(f"{name[:100]!r} is not a plain name")
    return name


def _stays_below(path: str) -> str:
    """Return `path` if it is relative and stays below where it starts."""
    for name in path.split("/"):
        _is_plain(name)
    return path


Step = Annotated[int, Field(ge=0, lt=2**53)]
PlainName = Annotated[str, Field(max_length=200), AfterValidator(_is_plain)]
RelativePath = Annotated[str, Field(max_length=2000), AfterValidator(_stays_below)]


class StoredModel(BaseModel):
    """What a JSON file of a checkpoint holds. Numbers are finite; nothing is converted."""

    model_config = ConfigDict(strict=True, frozen=True, extra="forbid", allow_inf_nan=False)


class StoredFile(StoredModel):
    """A `FileRecord` as JSON."""

    path: RelativePath
    size: Annotated[int, Field(ge=0, lt=2**63)]
    digest: Annotated[str, Field(pattern="^[0-9a-f]{32}$")]

    @property
    def record(self) -> FileRecord:
        return FileRecord(self.path, self.size, self.digest)


def _each_once(files: list[StoredFile]) -> list[StoredFile]:
    if len({file.path for file in files}) < len(files):
        raise ValueError("a file is listed twice")
    return files


StoredFiles = Annotated[list[StoredFile], AfterValidator(_each_once)]


def read_stored(path: Path, kind: type[T], *, max_bytes: int = _MAX_JSON_BYTES) -> T:
    """Read the JSON file at `path` as `kind`: a model, or a type that pydantic knows.

    Raises `CheckpointDamaged`, `NotJson` among it, and `FileNotFoundError`.
    """
    return checked(read_stored_json(path, max_bytes=max_bytes), kind, path)


def read_stored_json(path: Path, *, max_bytes: int = _MAX_JSON_BYTES) -> Json:
    """Read the JSON file at `path` as it is. Raises as `read_stored` does."""
    return parse_stored(read_stored_bytes(path, max_bytes=max_bytes), path)


def read_stored_bytes(path: Path, *, max_bytes: int) -> bytes:
    """Read the file at `path`. Raises `CheckpointDamaged` and `FileNotFoundError`."""
    try:
        return read_bounded(path, max_bytes)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise CheckpointDamaged(f"{path} cannot be read ({error.strerror})") from None


def parse_stored(content: bytes, path: Path) -> Json:
    """Parse the content of `path`. Raises `NotJson`, also for what is nested too deep."""
    try:
        value = json.loads(content)
        json.dumps(value, indent=1)  # No later use of it nests deeper than this.
    except (ValueError, RecursionError) as error:
        raise NotJson(f"{path} is not JSON, or nested too deep: {error}") from None
    return value


def checked(value: Json, kind: type[T], path: Path) -> T:
    """Return `value`, which was in the file at `path`, as `kind`. Raises `CheckpointDamaged`."""
    try:
        return TypeAdapter(kind).validate_python(value)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        place = ".".join(map(str, first["loc"])) or "the whole file"
        raise CheckpointDamaged(f"{path} is damaged: {place[:200]!r}: {first['msg']}") from None


@contextmanager
def damage_unless_fit(path: Path, *more: type[Exception]) -> Iterator[None]:
    """Turn the errors of a block that restores the content of `path` into `CheckpointDamaged`.

    For values that only other libraries know how to check, such as the states of generators.
    `more` are further errors that can mean nothing else there.
    """
    unfit = (LookupError, TypeError, ValueError, AttributeError, ArithmeticError)
    kinds: tuple[type[Exception], ...] = (*unfit, *more)
    try:
        yield
    except kinds as error:
        raise CheckpointDamaged(
            f"{path} does not hold what was saved there: {type(error).__name__}: {error}"
        ) from error
