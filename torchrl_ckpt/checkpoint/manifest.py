"""`manifest.json`: what a checkpoint is, and every file of it with size and digest."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import xxhash

from torchrl_ckpt.checkpoint.layout import MANIFEST
from torchrl_ckpt.plugin_api.checkpoint_backends import FileRecord
from torchrl_ckpt.plugin_api.durable_files import record_json
from torchrl_ckpt.plugin_api.errors import CheckpointDamaged, CheckpointMismatch
from torchrl_ckpt.plugin_api.plugin import Json
from torchrl_ckpt.run.resolved import recipe_sections

FORMAT = 2
"""The format of whole checkpoints: the manifest, the parts, and the batches in them."""


@dataclass(frozen=True)
class Manifest:
    """The record of a committed checkpoint. `metadata` is everything besides the files."""

    step: int
    parts: tuple[str, ...]
    files: tuple[FileRecord, ...]
    metadata: Mapping[str, Any]

    @property
    def trainer_recipe(self) -> Json:
        """The trainer's section of the recipe, whatever kind of job it was."""
        return self.recipe_sections["trainer"]

    @property
    def recipe_sections(self) -> dict[str, Json]:
        """The sections of the recipe that saved it, by component."""
        return recipe_sections(self.metadata["command"], self.metadata["recipe"])

    @property
    def size(self) -> int:
        """The size of all its files, in bytes."""
        return sum(file.size for file in self.files)


def write_manifest(directory: Path, content: Mapping[str, Json]) -> None:
    """Write the record durably, with a digest of itself as its seal."""
    content = {**content, "format": FORMAT}
    record_json(directory, MANIFEST, {**content, "seal": _seal(content)})


def read_manifest(directory: Path) -> Manifest:
    """Read and check the record.

    Raises `CheckpointDamaged` for one that is missing or changed, and `CheckpointMismatch` for one
    of another format.
    """
    path = directory / MANIFEST
    try:
        content = json.loads(path.read_bytes())
        seal = content.pop("seal")
    except FileNotFoundError:
        raise CheckpointDamaged(f"{path} is missing") from None
    except OSError as error:
        raise CheckpointDamaged(f"{path} cannot be read ({error.strerror})") from None
    except (ValueError, KeyError, AttributeError) as error:
        raise CheckpointDamaged(f"{path} is not a manifest: {error}") from None
    whole = json.dumps({**content, "seal": seal}, indent=1, sort_keys=True) + "\n"
    if seal != _seal(content) or whole.encode() != path.read_bytes():
        raise CheckpointDamaged(f"{path} has changed: its seal does not match")
    if content["format"] != FORMAT:
        # Not `CheckpointDamaged`: `latest` would move it to quarantine.
        raise CheckpointMismatch(
            f"{path} has checkpoint format {content['format']}, and this version of torchrl-ckpt "
            f"reads format {FORMAT}. Resume with the version that wrote it, or export its model "
            "with that version and start a new run from the weights"
        )
    files = tuple(FileRecord(**file) for file in content.pop("files"))
    for file in files:
        if Path(file.path).is_absolute() or ".." in Path(file.path).parts:
            raise CheckpointDamaged(f"{path} names a file outside its directory: {file.path}")
    return Manifest(content.pop("step"), tuple(content.pop("parts")), files, content)


def _seal(content: Mapping[str, Json]) -> str:
    return xxhash.xxh3_128_hexdigest(json.dumps(content, sort_keys=True).encode())
