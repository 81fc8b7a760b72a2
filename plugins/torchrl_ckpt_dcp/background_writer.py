"""What the writer's process does: it writes what lies in the staging area, digests and syncs it.

These functions are called by `AsyncDcpBackend` through a `Companion`, in the order of this file.
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch.distributed.checkpoint import DefaultSavePlanner
from torch.distributed.checkpoint.metadata import MetadataIndex
from torch.distributed.checkpoint.planner import WriteItem
from torch.distributed.checkpoint.storage import WriteResult

from torchrl_ckpt.plugin_api.checkpoint_backends import FileRecord
from torchrl_ckpt_dcp.planned_save import PlannedSave
from torchrl_ckpt_dcp.recording_writer import RecordingWriter
from torchrl_ckpt_dcp.staging_area import Place, StagingArea

_NICENESS = 10  # The training's own threads come first where there are too few cores for all.


@dataclass(frozen=True)
class WrittenPieces:
    """What this rank wrote: what DCP's metadata needs of it, its files, and what it took."""

    results: list[WriteResult]
    files: list[FileRecord]
    write_seconds: float
    hash_seconds: float


class _StagedTensors(DefaultSavePlanner):
    """Finds the tensors of a plan in the staging area."""

    def __init__(self, planned: PlannedSave, area: StagingArea) -> None:
        super().__init__()
        pairs = zip(planned.plan.items, area.tensors, strict=True)
        self._tensors: dict[MetadataIndex, torch.Tensor] = {i.index: t for i, t in pairs}

    def resolve_data(self, write_item: WriteItem) -> torch.Tensor:
        return self._tensors[write_item.index]


@dataclass
class _Job:
    planned: PlannedSave
    area: StagingArea
    tensors: _StagedTensors
    threads: int
    writer: RecordingWriter | None = None


_job: _Job


def set_up(planned: PlannedSave, places: Sequence[Place], fd: int, threads: int) -> None:
    """Take note of the plan and of the staging area, whose descriptor is `fd` here."""
    global _job
    torch.set_num_threads(1)
    os.nice(_NICENESS)
    area = StagingArea(places, fd)
    _job = _Job(planned, area, _StagedTensors(planned, area), threads)


def write(directory: Path) -> WrittenPieces:
    """Write this rank's tensors below `directory`, durably."""
    began = time.perf_counter()
    area = _job.area

    def advance(count: int) -> None:
        area.written += count

    _job.writer = writer = RecordingWriter(directory, thread_count=_job.threads, advance=advance)
    writer.fs.mkdir(directory)
    results = writer.write_data(_job.planned.plan, _job.tensors).value()
    files = writer.finish_records()
    return WrittenPieces(results, files, time.perf_counter() - began, writer.hash_seconds)


def finish(results: list[list[WriteResult]]) -> list[FileRecord]:
    """Write what tells which tensor is where, from the results of all ranks; rank 0 does this.

    Returns the files that came to those of `write`.
    """
    writer, metadata = _job.writer, _job.planned.metadata
    assert writer is not None
    assert metadata is not None
    before = {record.path for record in writer.finish_records()}
    writer.finish(replace(metadata), results)
    return [record for record in writer.finish_records() if record.path not in before]
