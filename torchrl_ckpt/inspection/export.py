"""Exports the model of a checkpoint as a Hugging Face directory."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from torchrl_ckpt.checkpoint.layout import MANIFEST, MODEL
from torchrl_ckpt.checkpoint.stored_json import checked
from torchrl_ckpt.checkpoint.verify import verify
from torchrl_ckpt.config.section import PluginTable
from torchrl_ckpt.inspection.stored_tensors import StoredTensors
from torchrl_ckpt.plugin_api.checkpoint_backends import Advance
from torchrl_ckpt.plugin_api.durable_files import fsync_directory
from torchrl_ckpt.plugin_api.errors import ExportRefused
from torchrl_ckpt.registry.loading import create


def export(checkpoint: Path, target: Path, *, advance: Advance = lambda _: None) -> int:
    """Verify `checkpoint` and write its model to the new directory `target`; return its step.

    `target` appears whole or not at all. Raises `ExportRefused` where it exists,
    `CheckpointDamaged`, and whatever is wrong with the model's plugin or its options.
    """
    if target.exists():
        raise ExportRefused(f"{target} exists already; choose another directory, or remove it")
    manifest = verify(checkpoint, advance=advance)
    table = checked(manifest.trainer_recipe["model"], PluginTable, Path(MANIFEST))
    model = create("models", table, any_variable=False)
    stored = StoredTensors(checkpoint, manifest)
    names = [t.name for t in stored.describe() if t.name.startswith(MODEL)]
    tensors = {name[len(MODEL) :]: t for name, t in stored.read(names).items()}
    partial = target.with_name(f".{target.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        partial.mkdir(parents=True)
        model.export(tensors, partial)
        os.rename(partial, target)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    fsync_directory(target.parent)
    return manifest.step
