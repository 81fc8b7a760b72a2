"""The writer process: writes the tensors in the staging area, digests the files and syncs them.

`AsyncDcpBackend` calls these functions through a `WorkerProcess`, in the order of this file.
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
from torchrl_ckpt_dcp.staging_area import BufferSlot, StagingArea

_NICENESS = 10  # Training threads go first where there are too few cores for all.


@dataclass(frozen=True)
class WriteReport:
    """What one rank wrote: DCP's results, which go into `.metadata`, the files, and the times."""

    results: list[WriteResult]
    files: list[FileRecord]
    write_seconds: float
    hash_seconds: float


class _StagedTensors(DefaultSavePlanner):
    """Takes the tensors of a plan from the staging area."""

    def __init__(self, planned: PlannedSave, area: StagingArea) -> None:
        super().__init__()
        pairs = zip(planned.plan.items, area.tensors, strict=True)
        self._tensors: dict[MetadataIndex, torch.Tensor] = {i.index: t for i, t in pairs}

    def resolve_data(self, write_item: WriteItem) -> torch.Tensor:
        return self._tensors[write_item.index]


@dataclass
class _WriterState:
    planned: PlannedSave
    area: StagingArea
    tensors: _StagedTensors
    threads: int
    writer: RecordingWriter | None = None


_state: _WriterState


def set_up(planned: PlannedSave, slots: Sequence[BufferSlot], fd: int, threads: int) -> None:
    """Store the plan, and map the staging area, whose descriptor is `fd` in this process."""
    global _state
    torch.set_num_threads(1)
    os.nice(_NICENESS)
    area = StagingArea(slots, fd)
    _state = _WriterState(planned, area, _StagedTensors(planned, area), threads)


def write_tensors(directory: Path) -> WriteReport:
    """Write this rank's tensors below `directory` durably.

    Raises `OSError` for a failing disk and `CheckpointDamaged` where a writer thread has failed.
    """
    began = time.perf_counter()
    area = _state.area

    def advance(count: int) -> None:
        area.written_bytes += count

    _state.writer = writer = RecordingWriter(
        directory, thread_count=_state.threads, advance=advance
    )
    results = writer.write_plan(_state.planned.plan, _state.tensors)
    files = writer.durable_files()
    return WriteReport(results, files, time.perf_counter() - began, writer.hash_seconds)


def write_metadata(results: list[list[WriteResult]]) -> list[FileRecord]:
    """Write `.metadata`, which says where each tensor is, from the results of all ranks (on rank 0
    only). Return the files written since `write_tensors`.
    """
    writer, metadata = _state.writer, _state.planned.metadata
    assert writer is not None
    assert metadata is not None
    before = {record.path for record in writer.durable_files()}
    writer.finish(replace(metadata), results)
    return [record for record in writer.durable_files() if record.path not in before]
