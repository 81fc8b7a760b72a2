"""Turns a checkpoint's model into a Hugging Face directory."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from torchrl_ckpt.checkpoint.layout import MODEL
from torchrl_ckpt.checkpoint.verify import verify
from torchrl_ckpt.inspection.plugins import model
from torchrl_ckpt.inspection.tensors import StoredTensors
from torchrl_ckpt.plugin_api.checkpoint_backends import Advance
from torchrl_ckpt.plugin_api.durable_files import fsync_directory
from torchrl_ckpt.plugin_api.errors import ExportRefused


def export(checkpoint: Path, target: Path, *, advance: Advance = lambda _: None) -> int:
    """Verify `checkpoint` and write its model to the new directory `target`; returns its step.

    `target` appears whole. Raises `ExportRefused` where it exists, and `CheckpointDamaged`.
    """
    if target.exists():
        raise ExportRefused(f"{target} is there already; choose a new directory, or remove it")
    manifest = verify(checkpoint, advance=advance)
    plugin = model(manifest)
    stored = StoredTensors(checkpoint, manifest)
    names = [t.name for t in stored.describe() if t.name.startswith(MODEL)]
    tensors = {name[len(MODEL) :]: t for name, t in stored.read(names).items()}
    partial = target.with_name(f".{target.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        partial.mkdir(parents=True)
        plugin.export(tensors, partial)
        os.rename(partial, target)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    fsync_directory(target.parent)
    return manifest.step
