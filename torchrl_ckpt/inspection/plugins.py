"""The plugins that a checkpoint was made with."""

from __future__ import annotations

from typing import Any

from torchrl_ckpt import registry
from torchrl_ckpt.checkpoint.manifest import Manifest
from torchrl_ckpt.config.section import PluginTable
from torchrl_ckpt.plugin_api.checkpoint_backends import CheckpointBackend
from torchrl_ckpt.plugin_api.models import Model
from torchrl_ckpt.plugin_api.plugin import Json, Kind


def checkpoint_backend(manifest: Manifest) -> CheckpointBackend:
    """What wrote its tensors. Raises whatever is wrong with that plugin or its options."""
    return _create("checkpoint_backends", manifest.trainer_recipe["ckpt"]["backend"])


def model(manifest: Manifest) -> Model:
    """What was trained. Raises whatever is wrong with that plugin or its options."""
    return _create("models", manifest.trainer_recipe["model"])


def _create(kind: Kind, resolved: Json) -> Any:
    table = PluginTable.model_validate(resolved)
    return registry.create(kind, table.type, table.options)
