"""Copies a committed checkpoint into another run's directory, so that the run can go on from it."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from torchrl_ckpt.checkpoint.layout import MANIFEST, Layout
from torchrl_ckpt.checkpoint.manifest import read_manifest
from torchrl_ckpt.plugin_api.checkpoint_backends import FileRecord
from torchrl_ckpt.plugin_api.durable_files import (
    digest_file,
    fsync_directory,
    make_directory,
    recorded_file,
)
from torchrl_ckpt.plugin_api.errors import CheckpointDamaged, CheckpointFailed, RunDirectoryInUse
from torchrl_ckpt.plugin_api.untrusted_files import open_below

_CHUNK_BYTES = 16 * 1024 * 1024


def fork(origin: Path, target: Layout, *, link: bool = False) -> Path:
    """Copy the checkpoint at `origin`, which the caller has verified; return the new directory.

    It appears whole or not at all, and each file is compared with the manifest while it is copied.
    With `link` the files are hard links instead. That takes no space, and nothing writes to them
    again, but a fault of the disk damages both. Raises `CheckpointDamaged`, `CheckpointFailed`, or
    `RunDirectoryInUse` where `target` has that step.
    """
    manifest = read_manifest(origin)
    committed, partial = target.step(manifest.step), target.partial(manifest.step)
    if committed.exists():
        raise RunDirectoryInUse(f"{committed} exists already; fork into another directory")
    shutil.rmtree(partial, ignore_errors=True)
    record = FileRecord(MANIFEST, *digest_file(origin / MANIFEST))
    try:
        make_directory(partial)
        for file in (*manifest.files, record):
            (_link if link else _copy)(origin, partial, file)
        os.rename(partial, committed)
        fsync_directory(target.root)
    except OSError as error:
        raise CheckpointFailed(f"cannot fork {origin} to {committed}: {error}") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return committed


def _copy(origin: Path, partial: Path, expected: FileRecord) -> None:
    with (
        open_below(origin, expected.path) as file,
        recorded_file(partial, expected.path) as (stream, records),
    ):
        # No more is read than the file should have.
        while chunk := file.read(min(_CHUNK_BYTES, expected.size - stream.size)):
            stream.write(chunk)
    if records != [expected]:
        raise CheckpointDamaged(f"{origin / expected.path} differs from what its manifest says")


def _link(origin: Path, partial: Path, expected: FileRecord) -> None:
    path = partial / expected.path
    with open_below(origin, expected.path):
        pass  # It is a file, and no link leads to it.
    make_directory(path.parent)
    os.link(origin / expected.path, path)
    fsync_directory(path.parent)
