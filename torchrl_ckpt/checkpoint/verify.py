"""Verification: every file of a checkpoint against size and digest in its manifest, without
torch."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from torchrl_ckpt.checkpoint.layout import MANIFEST
from torchrl_ckpt.checkpoint.manifest import Manifest, read_manifest
from torchrl_ckpt.plugin_api.checkpoint_backends import Advance, FileRecord
from torchrl_ckpt.plugin_api.durable_files import digest_stream
from torchrl_ckpt.plugin_api.errors import CheckpointDamaged
from torchrl_ckpt.plugin_api.untrusted_files import open_below


def verify(directory: Path, *, advance: Advance = lambda _: None) -> Manifest:
    """Check every file of a committed checkpoint and return its manifest.

    Raises `CheckpointDamaged`, which names every file that is missing, has changed or is not a
    regular file, and what `read_manifest` raises. Other files may be there: see `strays`.
    """
    manifest = read_manifest(directory)
    faults = [fault for file in manifest.files if (fault := _fault(directory, file, advance))]
    if faults:
        raise CheckpointDamaged(f"{directory} is damaged: " + "; ".join(faults))
    return manifest


def strays(directory: Path, manifest: Manifest) -> Iterator[str]:
    """Yield what is in a checkpoint and not in its manifest, such as what an editor or a network
    file system (`.nfs...`) has left. Nothing reads it, so it is not damage."""
    expected = {MANIFEST, *(file.path for file in manifest.files)}
    for parent, directories, files in os.walk(directory):
        directories.sort()
        links = [name for name in directories if os.path.islink(os.path.join(parent, name))]
        for name in sorted([*files, *links]):
            relative = os.path.relpath(os.path.join(parent, name), directory)
            if relative not in expected:
                yield relative


def _fault(directory: Path, file: FileRecord, advance: Advance) -> str | None:
    """What is wrong with `file`; None if nothing is. No more is read of it than it should hold."""
    try:
        with open_below(directory, file.path) as stream:
            size = os.fstat(stream.fileno()).st_size
            if size != file.size:
                return f"{file.path} has {size} bytes instead of {file.size}"
            _, digest = digest_stream(stream, advance, max_bytes=file.size)
    except OSError as error:
        return f"{file.path} cannot be read ({error.strerror})"
    if digest != file.digest:
        return f"{file.path} has changed (xxh3-128 {digest} instead of {file.digest})"
    return None
