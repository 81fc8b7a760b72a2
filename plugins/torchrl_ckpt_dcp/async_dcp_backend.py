"""The checkpoint backend `async_dcp`: the files of `dcp`, written while training continues.

A save copies the state into memory shared with a writer process, which writes it to disk. The copy
runs during the next forward and backward pass; only the next update waits for it.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import torch
import torch.distributed as dist
from pydantic import Field
from torch.distributed import ProcessGroup

from torchrl_ckpt.plugin_api.checkpoint_backends import Advance, Save, Written
from torchrl_ckpt.plugin_api.errors import CheckpointFailed
from torchrl_ckpt.plugin_api.worker_process import WorkerProcess
from torchrl_ckpt_dcp import background_writer
from torchrl_ckpt_dcp.background_writer import WriteReport
from torchrl_ckpt_dcp.dcp_backend import DcpBackend, DcpConfig
from torchrl_ckpt_dcp.planned_save import PlannedSave, plan_save
from torchrl_ckpt_dcp.rank_exchange import gather_results
from torchrl_ckpt_dcp.staging_area import StagingArea, allocate_slots

_log = logging.getLogger(__name__)


class AsyncDcpConfig(DcpConfig):
    """Options of `async_dcp`."""

    stuck_after: Annotated[float, Field(gt=0)] = 600.0
    """Give up a save whose writer process has made no progress for this many seconds."""


@dataclass(frozen=True)
class _Preparation:
    """What all saves share. `ready` is done once the memory of `area` is allocated."""

    planned: PlannedSave
    area: StagingArea
    writer: WorkerProcess
    ready: Future[None]


class AsyncDcpBackend(DcpBackend):
    """Saves in the background, through one copy of the state that is allocated once."""

    in_background = True
    Config = AsyncDcpConfig
    config: AsyncDcpConfig

    def __init__(self, config: AsyncDcpConfig) -> None:
        super().__init__(config)
        self._stager = ThreadPoolExecutor(max_workers=1, thread_name_prefix="staging")
        self._prepared: _Preparation | None = None

    @property
    def writer_pid(self) -> int | None:
        """The process id of the writer, or None before `prepare`."""
        return self._prepared.writer.pid if self._prepared else None

    def prepare(self, state: Mapping[str, torch.Tensor], group: ProcessGroup) -> None:
        planned = plan_save(state, group)
        tensors = planned.local_tensors(state)
        area = StagingArea.create(allocate_slots(tensors))
        arguments = (planned, area.slots, area.fd, self.config.threads)
        writer = WorkerProcess(
            "checkpoint writer",
            (background_writer.set_up, arguments),
            pass_fds=(area.fd,),
            env={"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
        )
        writer.start()
        gpu = next((tensor.device for tensor in tensors if tensor.is_cuda), None)
        ready = self._stager.submit(_allocate, area, gpu)
        self._prepared = _Preparation(planned, area, writer, ready)

    def save(self, state: Mapping[str, torch.Tensor], directory: Path, group: ProcessGroup) -> Save:
        if self._prepared is None:
            self.prepare(state, group)
        assert self._prepared is not None
        prepared = self._prepared
        # A writer that cannot be started fails in `wait_written`, which tells the other ranks.
        with suppress(OSError):
            prepared.writer.start()  # Does nothing if it is alive.
        updated = torch.cuda.current_stream().record_event() if torch.cuda.is_available() else None
        prepared.area.written_bytes = 0
        staged = self._stager.submit(_stage, prepared, state, updated)
        return _BackgroundSave(prepared, staged, directory, group, self.config.stuck_after)

    def close(self) -> None:
        self._stager.shutdown()
        if self._prepared is not None:
            self._prepared.writer.close()
            self._prepared.area.close()


class _BackgroundSave:
    """A save whose state is copied on the staging thread and then written by the writer process."""

    def __init__(
        self,
        prepared: _Preparation,
        staged: Future[float],
        directory: Path,
        group: ProcessGroup,
        stuck_after: float,
    ) -> None:
        self._prepared = prepared
        self._staged = staged
        self._directory = directory
        self._group = group
        self._stuck_after = stuck_after

    def wait_staged(self) -> None:
        with suppress(Exception):
            self._staged.result()

    def wait_written(self, advance: Advance = lambda _: None) -> Written:
        report: WriteReport | None = None
        failure = None
        try:
            self._prepared.ready.result()
            self._staged.result()
            progress = _WriterProgress(self._prepared.area, advance, self._stuck_after)
            report = self._prepared.writer.call(
                background_writer.write_tensors, self._directory, on_wait=progress.poll
            )
            progress.poll()
        except Exception as error:
            # Any error: the other ranks wait in the same gather and must learn of it.
            failure = str(error) or repr(error)
        all_results = gather_results(report.results if report else [], failure, self._group)
        assert report is not None
        files = report.files
        began = time.perf_counter()
        if dist.get_rank(self._group) == 0:
            try:
                files = [
                    *files,
                    *self._prepared.writer.call(background_writer.write_metadata, all_results),
                ]
            except RuntimeError as error:
                raise CheckpointFailed(f"its metadata could not be written: {error}") from error
        return Written(
            files,
            {
                "staged_bytes": self._prepared.area.num_bytes,
                "stage_seconds": self._staged.result(),
                "write_seconds": report.write_seconds + time.perf_counter() - began,
                "hash_seconds": report.hash_seconds,
            },
        )


class _WriterProgress:
    """Reports the bytes written to `advance`, and times out a writer that makes no progress."""

    def __init__(self, area: StagingArea, advance: Advance, stuck_after: float) -> None:
        self._area = area
        self._advance = advance
        self._stuck_after = stuck_after
        self._reported_bytes = 0
        self._last_progress = time.monotonic()

    def poll(self) -> None:
        """Raise `CheckpointFailed` after `stuck_after` seconds without progress."""
        written = self._area.written_bytes
        if written > self._reported_bytes:
            self._advance(written - self._reported_bytes)
            self._reported_bytes, self._last_progress = written, time.monotonic()
        elif time.monotonic() - self._last_progress > self._stuck_after:
            raise CheckpointFailed(
                f"the checkpoint writer has written nothing for {self._stuck_after:.0f} s "
                f"({written} bytes so far); is the file system stuck? "
                "`ckpt.backend.stuck_after` sets the limit"
            )


def _allocate(area: StagingArea, gpu: torch.device | None) -> None:
    if gpu is not None:
        try:
            with torch.cuda.device(gpu):  # The current device of a new thread is always GPU 0.
                area.pin()
        except RuntimeError as error:
            _log.warning("the staging memory is not pinned, so copies to it are slower: %s", error)
    area.touch()


def _stage(
    prepared: _Preparation, state: Mapping[str, torch.Tensor], updated: torch.cuda.Event | None
) -> float:
    """Copy the state as it was at `updated`; return the seconds that the copy took."""
    began = time.perf_counter()
    sources, targets = prepared.planned.local_tensors(state), prepared.area.tensors
    for source, target in zip(sources, targets, strict=True):
        assert (source.shape, source.dtype) == (target.shape, target.dtype)
    if updated is None:
        _copy(sources, targets)
    else:
        # A stream of its own, so that these copies run in parallel with the kernels of training.
        with torch.cuda.device(updated.device), torch.cuda.stream(torch.cuda.Stream()):
            torch.cuda.current_stream().wait_event(updated)
            _copy(sources, targets)
            torch.cuda.current_stream().synchronize()
    return time.perf_counter() - began


def _copy(sources: list[torch.Tensor], targets: list[torch.Tensor]) -> None:
    for source, target in zip(sources, targets, strict=True):
        target.copy_(source, non_blocking=True)
