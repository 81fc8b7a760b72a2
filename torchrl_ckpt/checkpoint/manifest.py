"""`manifest.json`: what a checkpoint is, and every file of it with size and digest."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import xxhash
from pydantic import AfterValidator, BeforeValidator, ConfigDict, Field

from torchrl_ckpt.checkpoint.layout import MANIFEST, step_in_name
from torchrl_ckpt.checkpoint.stored_json import (
    PlainName,
    Step,
    StoredFiles,
    StoredModel,
    checked,
    parse_stored,
    read_stored_bytes,
)
from torchrl_ckpt.plugin_api.checkpoint_backends import FileRecord
from torchrl_ckpt.plugin_api.durable_files import record_json
from torchrl_ckpt.plugin_api.errors import CheckpointDamaged, CheckpointMismatch
from torchrl_ckpt.plugin_api.plugin import Json
from torchrl_ckpt.run.resolved import recipe_sections

FORMAT = 2
"""The format of whole checkpoints: the manifest, the parts, and the batches in them."""

_MAX_MANIFEST_BYTES = 16 * 1024 * 1024  # More than 100,000 files.
_YEAR_9999 = 253_402_300_799


@dataclass(frozen=True)
class Manifest:
    """The record of a committed checkpoint. `metadata` is everything besides the files."""

    step: int
    parts: tuple[str, ...]
    files: tuple[FileRecord, ...]
    metadata: Mapping[str, Any]

    @property
    def trainer_recipe(self) -> Json:
        """The trainer's section of the recipe, whatever kind of job it was; `ckpt.backend`,
        `ckpt.directory` and `model` are there. Raises `CheckpointDamaged`."""
        trainer = self.recipe_sections.get("trainer")
        return checked(trainer, _TrainerRecipe, Path(MANIFEST)).model_dump()

    @property
    def recipe_sections(self) -> dict[str, Json]:
        """The sections of the recipe that saved it, by component. Raises `CheckpointDamaged`."""
        command, recipe = self.metadata["command"], self.metadata["recipe"]
        needed = {"trainer", "orchestrator"} if command == "rl" else set[str]()
        if command is None or recipe is None or not needed <= recipe.keys():
            raise CheckpointDamaged(f"the manifest of step {self.step} has no recipe")
        return checked(recipe_sections(command, recipe), dict[str, dict[str, Json]], Path(MANIFEST))

    @property
    def size(self) -> int:
        """The size of all its files, in bytes."""
        return sum(file.size for file in self.files)


class _Plugin(StoredModel):
    model_config = ConfigDict(extra="allow")

    name: str
    distribution: str
    version: str | None


def _no_manifest(files: StoredFiles) -> StoredFiles:
    if any(file.path == MANIFEST for file in files):
        raise ValueError("the manifest cannot name itself")
    return files


class _Content(StoredModel):
    """`manifest.json` without its seal."""

    model_config = ConfigDict(extra="allow")

    step: Step
    parts: Annotated[list[PlainName], Field(max_length=100)]
    files: Annotated[StoredFiles, AfterValidator(_no_manifest)]
    created: Annotated[float, Field(ge=0, le=_YEAR_9999)]
    command: str | None = None
    recipe: dict[str, Json] | None = None
    progress: dict[str, int] = Field(default_factory=dict)
    world_size: int = 1
    versions: dict[str, str] = Field(default_factory=dict)
    plugins: dict[str, _Plugin] = Field(default_factory=dict)


class _Checkpointing(StoredModel):
    model_config = ConfigDict(extra="allow")

    directory: str = "checkpoints"
    backend: dict[str, Json] | str = "dcp"


class _TrainerRecipe(StoredModel):
    model_config = ConfigDict(extra="allow")

    model: dict[str, Json] | str
    ckpt: Annotated[_Checkpointing, BeforeValidator(lambda value: value or {})] = _Checkpointing()


def write_manifest(directory: Path, content: Mapping[str, Json]) -> None:
    """Write the record durably, with a digest of itself as its seal."""
    content = {**content, "format": FORMAT}
    record_json(directory, MANIFEST, {**content, "seal": _seal(content)})


def read_manifest(directory: Path) -> Manifest:
    """Read and check the record.

    Raises `CheckpointDamaged` for one that is missing, changed or malformed, and
    `CheckpointMismatch` for one of another format.
    """
    path = directory / MANIFEST
    try:
        raw = read_stored_bytes(path, max_bytes=_MAX_MANIFEST_BYTES)
    except FileNotFoundError:
        raise CheckpointDamaged(f"{path} is missing") from None
    content = parse_stored(raw, path)
    if not isinstance(content, dict) or not isinstance(content.get("format"), int):
        raise CheckpointDamaged(f"{path} is not a manifest")
    seal = content.pop("seal", None)
    if seal != _seal(content) or _whole(content, seal) != raw:
        raise CheckpointDamaged(f"{path} has changed: its seal does not match")
    if content["format"] != FORMAT:
        # Not `CheckpointDamaged`: `latest` would move it to quarantine.
        raise CheckpointMismatch(
            f"{path} has checkpoint format {content['format']}, and this version of torchrl-ckpt "
            f"reads format {FORMAT}. Resume with the version that wrote it, or export its model "
            "with that version and start a new run from the weights"
        )
    found = checked(content, _Content, path)
    named = step_in_name(directory.absolute().name)
    if named is not None and named != found.step:
        raise CheckpointDamaged(
            f"{path} is of step {found.step}, but its directory is named after step {named}"
        )
    metadata = found.model_dump(exclude={"step", "parts", "files"})
    records = tuple(file.record for file in found.files)
    return Manifest(found.step, tuple(found.parts), records, metadata)


def _whole(content: Mapping[str, Json], seal: Json) -> bytes:
    """The bytes of the manifest as `write_manifest` writes them."""
    return (json.dumps({**content, "seal": seal}, indent=1, sort_keys=True) + "\n").encode()


def _seal(content: Mapping[str, Json]) -> str:
    return xxhash.xxh3_128_hexdigest(json.dumps(content, sort_keys=True).encode())
