"""The tensors of a checkpoint, read by its backend in one process, without a model."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING

from torchrl_ckpt.checkpoint.layout import MANIFEST, TENSORS, TRAINER
from torchrl_ckpt.checkpoint.manifest import Manifest
from torchrl_ckpt.checkpoint.stored_json import checked
from torchrl_ckpt.config.section import PluginTable
from torchrl_ckpt.plugin_api.checkpoint_backends import (
    CheckpointBackend,
    ReadableBackend,
    TensorDescription,
)
from torchrl_ckpt.plugin_api.errors import CheckpointDamaged, UnsupportedByPlugin
from torchrl_ckpt.registry.loading import create

if TYPE_CHECKING:
    import torch


class StoredTensors:
    """The tensors of the checkpoint at `directory`.

    Raises `UnsupportedByPlugin` if its backend cannot read them without a model, and whatever is
    wrong with that plugin or its options.
    """

    def __init__(self, directory: Path, manifest: Manifest) -> None:
        backend = checkpoint_backend(manifest)
        if not isinstance(backend, ReadableBackend):
            raise UnsupportedByPlugin(
                f"{directory} was written by a checkpoint backend ({type(backend).__name__}) that "
                "has no `describe` and `read`: a run can resume from it, but its tensors cannot be "
                "shown, compared or exported"
            )
        self._backend = backend
        self._directory = directory / TRAINER / TENSORS
        if not self._directory.resolve().is_relative_to(directory.resolve()):
            raise CheckpointDamaged(f"{self._directory} is a link that leads out of {directory}")

    def describe(self) -> list[TensorDescription]:
        """Describe every tensor, ordered by name."""
        return self._backend.describe(self._directory)

    def read(self, names: Collection[str]) -> dict[str, torch.Tensor]:
        """Read the tensors `names`, whole and on CPU."""
        return self._backend.read(self._directory, names)


def checkpoint_backend(manifest: Manifest) -> CheckpointBackend:
    """Create the backend that wrote the tensors. Raises whatever is wrong with the plugin."""
    table = manifest.trainer_recipe["ckpt"]["backend"]
    checked_table = checked(table, PluginTable, Path(MANIFEST))
    return create("checkpoint_backends", checked_table, any_variable=False)
