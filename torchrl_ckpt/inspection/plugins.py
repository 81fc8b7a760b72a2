"""The plugins that a checkpoint was made with."""

from __future__ import annotations

from torchrl_ckpt.checkpoint.manifest import Manifest
from torchrl_ckpt.config.section import PluginTable
from torchrl_ckpt.plugin_api.checkpoint_backends import CheckpointBackend
from torchrl_ckpt.plugin_api.models import Model
from torchrl_ckpt.registry.loading import create


def checkpoint_backend(manifest: Manifest) -> CheckpointBackend:
    """What wrote its tensors. Raises whatever is wrong with that plugin or its options."""
    table = manifest.trainer_recipe["ckpt"]["backend"]
    return create("checkpoint_backends", PluginTable.model_validate(table))


def model(manifest: Manifest) -> Model:
    """What was trained. Raises whatever is wrong with that plugin or its options."""
    return create("models", PluginTable.model_validate(manifest.trainer_recipe["model"]))
