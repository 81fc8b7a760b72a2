"""Verification: every file of a checkpoint against size and digest in its manifest, without
torch."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from torchrl_ckpt.checkpoint.layout import MANIFEST
from torchrl_ckpt.checkpoint.manifest import Manifest, read_manifest
from torchrl_ckpt.plugin_api.checkpoint_backends import Advance
from torchrl_ckpt.plugin_api.durable_files import digest_file
from torchrl_ckpt.plugin_api.errors import CheckpointDamaged


def verify(directory: Path, *, advance: Advance = lambda _: None) -> Manifest:
    """Check every file of a committed checkpoint and return its manifest.

    Raises `CheckpointDamaged`, which names every file that is missing, changed or not in the
    manifest, and what `read_manifest` raises.
    """
    manifest = read_manifest(directory)
    if faults := list(_faults(directory, manifest, advance)):
        raise CheckpointDamaged(f"{directory} is damaged: " + "; ".join(faults))
    return manifest


def _faults(directory: Path, manifest: Manifest, advance: Advance) -> Iterator[str]:
    expected = {file.path: file for file in manifest.files}
    for path, file in expected.items():
        try:
            size, digest = digest_file(directory / path, advance)
        except OSError as error:
            yield f"{path} cannot be read ({error.strerror})"
            continue
        if size != file.size:
            yield f"{path} has {size} bytes instead of {file.size}"
        elif digest != file.digest:
            yield f"{path} has changed (xxh3-128 {digest} instead of {file.digest})"
    for found in sorted(directory.rglob("*")):
        relative = found.relative_to(directory).as_posix()
        if not found.is_dir() and relative != MANIFEST and relative not in expected:
            yield f"{relative} is not in the manifest"
