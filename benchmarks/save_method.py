"""Ways to save a training state, each behind the same four calls, for `benchmarks.checkpoint`."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import Any, Protocol

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.staging import DefaultStager, StagingOptions
from torch.distributed.checkpoint.state_dict_saver import AsyncCheckpointerType
from torch.distributed.tensor import DTensor

from torchrl_ckpt.checkpoint.layout import TENSORS, TRAINER, Layout
from torchrl_ckpt.checkpoint.verify import verify
from torchrl_ckpt.config.ckpt import CheckpointConfig
from torchrl_ckpt.config.section import PluginTable
from torchrl_ckpt.registry.loading import create
from torchrl_ckpt.run.attempt import Attempt
from torchrl_ckpt.run.progress import ProgressLog
from torchrl_ckpt.trainer.checkpointer import Checkpointer
from torchrl_ckpt.trainer.distributed import World
from torchrl_ckpt.trainer.state import TrainingState


class Pending(Protocol):
    """A save under way. `durable_at` is the moment at which it was done, on `time.perf_counter`."""

    durable_at: float | None

    def wait_staged(self) -> None: ...

    def wait(self) -> None: ...


class Contestant(Protocol):
    """One way to save."""

    def prepare(self) -> None:
        """What can be done before the first save."""
        ...

    def save(self, step: int) -> Pending: ...

    def load(self, step: int) -> None: ...

    def close(self) -> None: ...


class _Done:
    """A save that was done when `save` returned."""

    def __init__(self) -> None:
        self.durable_at: float | None = time.perf_counter()

    def wait_staged(self) -> None:
        pass

    def wait(self) -> None:
        pass


class _Uploading:
    """A save whose end is a future's."""

    def __init__(self, staged: Future[Any] | None, written: Future[Any]) -> None:
        self.durable_at: float | None = None
        self._staged = staged
        self._written = written
        written.add_done_callback(self._note)

    def _note(self, _: Future[Any]) -> None:
        self.durable_at = time.perf_counter()

    def wait_staged(self) -> None:
        if self._staged is not None:
            self._staged.result()

    def wait(self) -> None:
        self._written.result()
        while self.durable_at is None:
            time.sleep(0.001)


class TorchSave:
    """`torch.save` of this rank's tensors and an fsync."""

    def __init__(self, state: TrainingState, directory: Path, world: World) -> None:
        self._state = state
        self._directory = directory
        self._rank = world.rank

    def prepare(self) -> None:
        pass

    def _path(self, step: int) -> Path:
        return self._directory / f"step_{step}" / f"{self._rank}.pt"

    def save(self, step: int) -> Pending:
        path = self._path(step)
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(path, "wb") as file:
            torch.save(_local(self._state), file)
            file.flush()
            os.fsync(file.fileno())
        return _Done()

    def load(self, step: int) -> None:
        loaded = torch.load(self._path(step), weights_only=True)
        for name, tensor in _local(self._state).items():
            tensor.copy_(loaded[name])

    def close(self) -> None:
        pass


class DcpSave:
    """`dcp.save`, or `dcp.async_save` in one of its modes."""

    def __init__(
        self,
        state: TrainingState,
        directory: Path,
        world: World,
        mode: AsyncCheckpointerType | None,
    ) -> None:
        self._state = state
        self._directory = directory
        self._mode = mode
        self._group = world.checkpoint_group
        self._stager = None
        if mode is AsyncCheckpointerType.PROCESS:
            gpu = torch.cuda.is_available()
            self._stager = DefaultStager(
                StagingOptions(
                    use_pinned_memory=gpu,
                    use_shared_memory=True,
                    use_async_staging=True,
                    use_non_blocking_copy=gpu,
                )
            )

    def prepare(self) -> None:
        pass

    def save(self, step: int) -> Pending:
        tensors: dict[str, Any] = dict(self._state.tensors())
        path = self._directory / f"step_{step}"
        if self._mode is None:
            dcp.save(tensors, checkpoint_id=path, process_group=self._group)
            return _Done()
        answer = dcp.async_save(
            tensors,
            checkpoint_id=path,
            process_group=self._group,
            async_checkpointer_type=self._mode,
            async_stager=self._stager,
        )
        if isinstance(answer, Future):
            return _Uploading(None, answer)
        return _Uploading(answer.staging_completion, answer.upload_completion)

    def load(self, step: int) -> None:
        tensors: dict[str, Any] = dict(self._state.tensors())
        dcp.load(tensors, checkpoint_id=self._directory / f"step_{step}", process_group=self._group)

    def close(self) -> None:
        if self._stager is not None:
            self._stager.close()


class TorchCheckpointing:
    """Meta's `torch_checkpointing`, with its prewarming. It does not sync what it writes."""

    def __init__(self, state: TrainingState, directory: Path, world: World) -> None:
        from torch_checkpointing.checkpoint_manager import CheckpointManager
        from torch_checkpointing.config import AsyncCheckpointSaverConfig
        from torch_checkpointing.schema import ItemSpec
        from torch_checkpointing.storage.filesystem import LocalFileSystemStorageConfig

        self._state = state
        self._directory = directory
        config = CheckpointManager.Config(
            default=ItemSpec(requires_copy=True),
            save=AsyncCheckpointSaverConfig(),
            storage_config=LocalFileSystemStorageConfig(use_direct_io=False),
        )
        self._manager = config.build()

    def prepare(self) -> None:
        self._manager.prewarm_staging({"state": _local(self._state)})

    def save(self, step: int) -> Pending:
        path = str(self._directory / f"step_{step}")
        written = self._manager.save(path, {"state": _local(self._state)})
        return _Uploading(self._manager._staging_future, written)

    def load(self, step: int) -> None:
        into = {"state": _local(self._state)}
        loaded = self._manager.load(str(self._directory / f"step_{step}"), into)
        for name, tensor in into["state"].items():
            tensor.copy_(loaded["state"][name])

    def close(self) -> None:
        self._manager.close()


class Ours:
    """torchrl-ckpt from the request to the commit, and a load that verifies first."""

    def __init__(
        self, state: TrainingState, directory: Path, world: World, backend: str, threads: int
    ) -> None:
        self._state = state
        self._layout = Layout(directory)
        self._world = world
        self._backend = create("checkpoint_backends", PluginTable(type=backend, threads=threads))
        self._checkpoints = Checkpointer(
            Attempt(
                output_dir=directory.parent,
                number=0,
                max_steps=1,
                resume_step=None,
                ckpt=CheckpointConfig(
                    directory=directory.name,
                    backend=PluginTable(type=backend),
                    on_failure="stop",
                ),
            ),
            self._backend,
            world,
            parts=(TRAINER,),
            metadata={},
            progress=ProgressLog(directory.parent / "progress.jsonl", TRAINER),
            seed=0,
        )

    def prepare(self) -> None:
        self._checkpoints.prepare(self._state)

    def save(self, step: int) -> Pending:
        if not self._checkpoints.request(step, last=True):
            raise RuntimeError("the checkpoint could not be begun")
        self._checkpoints.save(step, self._state)
        return _OurSave(self._checkpoints)

    def load(self, step: int) -> None:
        directory = self._layout.step(step)
        if self._world.is_rank_zero:
            verify(directory)
        dist.barrier()
        tensors = self._state.tensors()
        self._backend.load(tensors, directory / TRAINER / TENSORS, self._world.checkpoint_group)

    def close(self) -> None:
        self._checkpoints.close()


class _OurSave:
    def __init__(self, checkpoints: Checkpointer) -> None:
        self._checkpoints = checkpoints
        self.durable_at: float | None = None
        if checkpoints.in_progress is None:
            self.durable_at = time.perf_counter()
        else:
            checkpoints.in_progress.add_done_callback(self._note)

    def _note(self, _: object) -> None:
        self.durable_at = time.perf_counter()

    def wait_staged(self) -> None:
        self._checkpoints.maybe_wait_for_staging()

    def wait(self) -> None:
        self._checkpoints.finish()


def _local(state: TrainingState) -> dict[str, torch.Tensor]:
    """What of each tensor is on this rank."""
    local = {}
    for name, tensor in state.tensors().items():
        own = tensor.to_local() if isinstance(tensor, DTensor) else tensor
        local[name] = own.detach()
    return local


Maker = Callable[[TrainingState, Path, World], Contestant]

CONTESTANTS: dict[str, Maker] = {
    "torch.save": TorchSave,
    "dcp.save": lambda *a: DcpSave(*a, mode=None),
    "dcp.async_save, thread": lambda *a: DcpSave(*a, mode=AsyncCheckpointerType.THREAD),
    "dcp.async_save, process": lambda *a: DcpSave(*a, mode=AsyncCheckpointerType.PROCESS),
    "torch_checkpointing": TorchCheckpointing,
    "torchrl-ckpt dcp": lambda *a: Ours(*a, backend="dcp", threads=1),
    "torchrl-ckpt async_dcp": lambda *a: Ours(*a, backend="async_dcp", threads=1),
}
