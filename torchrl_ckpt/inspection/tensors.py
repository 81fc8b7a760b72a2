"""A checkpoint's tensors, read by the backend that wrote them, one process and no model needed."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING

from torchrl_ckpt.checkpoint.layout import TENSORS, TRAINER
from torchrl_ckpt.checkpoint.manifest import Manifest
from torchrl_ckpt.inspection.plugins import checkpoint_backend
from torchrl_ckpt.plugin_api.checkpoint_backends import ReadableBackend, TensorDescription
from torchrl_ckpt.plugin_api.errors import NotOffered

if TYPE_CHECKING:
    import torch


class StoredTensors:
    """The tensors of the checkpoint at `directory`.

    Raises `NotOffered` where its backend cannot show them, and whatever is wrong with that plugin.
    """

    def __init__(self, directory: Path, manifest: Manifest) -> None:
        backend = checkpoint_backend(manifest)
        if not isinstance(backend, ReadableBackend):
            raise NotOffered(
                f"{directory} was written by a checkpoint backend ({type(backend).__name__}) that "
                "has no `describe` and `read`: one can resume from it, but not look into it"
            )
        self._backend = backend
        self._directory = directory / TRAINER / TENSORS

    def describe(self) -> list[TensorDescription]:
        return self._backend.describe(self._directory)

    def read(self, names: Collection[str]) -> dict[str, torch.Tensor]:
        return self._backend.read(self._directory, names)
