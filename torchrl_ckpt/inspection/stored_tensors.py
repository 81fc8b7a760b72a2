"""The tensors of a checkpoint, read by its backend in one process, without a model."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path

import torch

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
from torchrl_ckpt.plugin_api.untrusted_files import is_below
from torchrl_ckpt.registry.loading import create

_BATCH_BYTES = 256 * 1024 * 1024


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
        if not is_below(directory, self._directory):
            raise CheckpointDamaged(f"{self._directory} is a link that leads out of {directory}")

    def describe(self) -> list[TensorDescription]:
        """Describe every tensor, ordered by name."""
        return self._backend.describe(self._directory)

    def read(self, names: Collection[str]) -> dict[str, torch.Tensor]:
        """Read the tensors `names`, whole and on CPU."""
        return self._backend.read(self._directory, names)


def batches(tensors: Iterable[TensorDescription]) -> Iterator[list[str]]:
    """Yield names of tensors that are read together.

    A backend reads its index anew for each batch, and two whole checkpoints may not fit into
    memory.
    """
    batch: list[str] = []
    size = 0
    for tensor in tensors:
        batch.append(tensor.name)
        size += math.prod(tensor.shape) * getattr(torch, tensor.dtype).itemsize
        if size >= _BATCH_BYTES:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def count_nonfinite(stored: StoredTensors) -> dict[str, int]:
    """Read every tensor; return by name how many of its values are NaN or infinite."""
    counts: dict[str, int] = {}
    for names in batches(stored.describe()):
        for name, tensor in stored.read(names).items():
            counts[name] = tensor.numel() - int(tensor.isfinite().sum())
    return counts


def checkpoint_backend(manifest: Manifest) -> CheckpointBackend:
    """Create the backend that wrote the tensors. Raises whatever is wrong with the plugin."""
    table = manifest.trainer_recipe["ckpt"]["backend"]
    checked_table = checked(table, PluginTable, Path(MANIFEST))
    return create("checkpoint_backends", checked_table, any_variable=False)
