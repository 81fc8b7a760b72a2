"""The checkpoint backend `async_dcp`: the files of `dcp`, written while training goes on.

A save copies the state into memory that is shared with a process of its own, and that process
writes. The copy runs beside the next forward and backward pass; only the next update waits for it.
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
from torch.distributed.checkpoint.storage import WriteResult

from torchrl_ckpt.plugin_api.checkpoint_backends import Advance, Save, Written
from torchrl_ckpt.plugin_api.errors import CheckpointFailed
from torchrl_ckpt.plugin_api.worker_process import WorkerProcess
from torchrl_ckpt_dcp import background_writer
from torchrl_ckpt_dcp.background_writer import WrittenPieces
from torchrl_ckpt_dcp.dcp_backend import DcpBackend, DcpConfig
from torchrl_ckpt_dcp.planned_save import PlannedSave, plan_save
from torchrl_ckpt_dcp.staging_area import StagingArea, lay_out

_log = logging.getLogger(__name__)


class AsyncDcpConfig(DcpConfig):
    """Options of `async_dcp`."""

    stuck_after: Annotated[float, Field(gt=0)] = 600.0
    """Give a save up when the writer has not got any further for so many seconds."""


@dataclass(frozen=True)
class _Prepared:
    """What is made once. `ready` ends when the memory of `area` was touched."""

    planned: PlannedSave
    area: StagingArea
    writer: WorkerProcess
    ready: Future[None]


class AsyncDcpBackend(DcpBackend):
    """Saves beside the training. Its memory is one copy of the state, allocated once."""

    in_background = True
    Config = AsyncDcpConfig
    config: AsyncDcpConfig

    def __init__(self, config: AsyncDcpConfig) -> None:
        super().__init__(config)
        self._stager = ThreadPoolExecutor(max_workers=1, thread_name_prefix="staging")
        self._prepared: _Prepared | None = None

    @property
    def writer_pid(self) -> int | None:
        """The process that writes, once there is one."""
        return self._prepared.writer.pid if self._prepared else None

    def prepare(self, state: Mapping[str, torch.Tensor], group: ProcessGroup) -> None:
        planned = plan_save(state, group)
        pieces = planned.pieces(state)
        area = StagingArea.create(lay_out(pieces))
        set_up = (planned, area.places, area.fd, self.config.threads)
        writer = WorkerProcess(
            "checkpoint writer",
            (background_writer.set_up, set_up),
            pass_fds=(area.fd,),
            env={"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
        )
        writer.start()
        gpu = next((piece.device for piece in pieces if piece.is_cuda), None)
        ready = self._stager.submit(_make_ready, area, gpu)
        self._prepared = _Prepared(planned, area, writer, ready)

    def save(self, state: Mapping[str, torch.Tensor], directory: Path, group: ProcessGroup) -> Save:
        if self._prepared is None:
            self.prepare(state, group)
        assert self._prepared is not None
        prepared = self._prepared
        with suppress(OSError):  # Then the call to it fails, on the other ranks as well.
            prepared.writer.start()  # Does nothing where it is alive.
        up_to = torch.cuda.current_stream().record_event() if torch.cuda.is_available() else None
        prepared.area.written = 0
        staged = self._stager.submit(_stage, prepared, state, up_to)
        return _BackgroundSave(prepared, staged, directory, group, self.config.stuck_after)

    def close(self) -> None:
        self._stager.shutdown()
        if self._prepared is not None:
            self._prepared.writer.close()
            self._prepared.area.close()


class _BackgroundSave:
    """A save whose state is being copied, and then written by the writer's process."""

    def __init__(
        self,
        prepared: _Prepared,
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
        pieces: WrittenPieces | None = None
        fault = None
        try:
            self._prepared.ready.result()
            self._staged.result()
            watch = _Watch(self._prepared.area, advance, self._stuck_after)
            pieces = self._prepared.writer.call(
                background_writer.write, self._directory, on_wait=watch.poll
            )
            watch.poll()
        except Exception as error:
            # Whatever it is, the others must hear of it: they wait here.
            fault = str(error) or repr(error)
        all_results = self._gather(pieces and pieces.results, fault)
        assert pieces is not None
        files = pieces.files
        began = time.perf_counter()
        if dist.get_rank(self._group) == 0:
            try:
                files = [
                    *files,
                    *self._prepared.writer.call(background_writer.finish, all_results),
                ]
            except RuntimeError as error:
                raise CheckpointFailed(f"its metadata could not be written: {error}") from error
        return Written(
            files,
            {
                "staged_bytes": self._prepared.area.num_bytes,
                "stage_seconds": self._staged.result(),
                "write_seconds": pieces.write_seconds + time.perf_counter() - began,
                "hash_seconds": pieces.hash_seconds,
            },
        )

    def _gather(
        self, results: list[WriteResult] | None, fault: str | None
    ) -> list[list[WriteResult]]:
        """Every rank's results. Raises `CheckpointFailed` on all ranks where one has a fault."""
        gathered: list[tuple[list[WriteResult], str | None]] = [([], None)] * dist.get_world_size(
            self._group
        )
        dist.all_gather_object(gathered, (results or [], fault), group=self._group)
        faults = [f"rank {rank}: {said}" for rank, (_, said) in enumerate(gathered) if said]
        if faults:
            raise CheckpointFailed("; ".join(faults))
        return [share for share, _ in gathered]


class _Watch:
    """Passes on how far the writer is, and loses patience with one that does not get further."""

    def __init__(self, area: StagingArea, advance: Advance, stuck_after: float) -> None:
        self._area = area
        self._advance = advance
        self._stuck_after = stuck_after
        self._seen = 0
        self._moved = time.monotonic()

    def poll(self) -> None:
        """Raises `CheckpointFailed` where nothing has happened for too long."""
        written = self._area.written
        if written > self._seen:
            self._advance(written - self._seen)
            self._seen, self._moved = written, time.monotonic()
        elif time.monotonic() - self._moved > self._stuck_after:
            raise CheckpointFailed(
                f"the checkpoint writer has written nothing for {self._stuck_after:.0f} s "
                f"({written} bytes so far); is the file system stuck? "
                "`ckpt.backend.stuck_after` sets the limit"
            )


def _make_ready(area: StagingArea, gpu: torch.device | None) -> None:
    if gpu is not None:
        try:
            with torch.cuda.device(gpu):  # A thread's own is the first one, whoever started it.
                area.pin()
        except RuntimeError as error:
            _log.warning("the staging memory is not pinned, so copies to it are slower: %s", error)
    area.touch()


def _stage(
    prepared: _Prepared, state: Mapping[str, torch.Tensor], up_to: torch.cuda.Event | None
) -> float:
    """Copy what the state was at `up_to`; returns the seconds that it took."""
    began = time.perf_counter()
    sources, targets = prepared.planned.pieces(state), prepared.area.tensors
    for source, target in zip(sources, targets, strict=True):
        assert (source.shape, source.dtype) == (target.shape, target.dtype)
    if up_to is None:
        _copy(sources, targets)
    else:
        # A stream of its own, so that the training's kernels and these copies run side by side.
        with torch.cuda.device(up_to.device), torch.cuda.stream(torch.cuda.Stream()):
            torch.cuda.current_stream().wait_event(up_to)
            _copy(sources, targets)
            torch.cuda.current_stream().synchronize()
    return time.perf_counter() - began


def _copy(sources: list[torch.Tensor], targets: list[torch.Tensor]) -> None:
    for source, target in zip(sources, targets, strict=True):
        target.copy_(source, non_blocking=True)
