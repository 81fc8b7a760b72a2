"""Methods of saving a training state, behind the same four calls, for `benchmarks.checkpoint`."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from concurrent.futures import Future
from functools import partial
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


class PendingSave(Protocol):
    """A save in progress. `durable_at` is when it was complete, on the clock of `perf_counter`."""

    durable_at: float | None

    def wait_staged(self) -> None:
        """Wait until the state may change."""
        ...

    def wait(self) -> None:
        """Wait until the save is complete."""
        ...


class SaveMethod(Protocol):
    """A method of saving and loading a training state, below a directory of checkpoints."""

    def prepare(self) -> None:
        """Do whatever can be done before the first save."""
        ...

    def save(self, step: int) -> PendingSave: ...

    def load(self, step: int) -> None: ...

    def close(self) -> None: ...


class _CompleteSave:
    """A save that was complete when `save` returned."""

    def __init__(self) -> None:
        self.durable_at: float | None = time.perf_counter()

    def wait_staged(self) -> None:
        pass

    def wait(self) -> None:
        pass


class _FutureSave:
    """A save that is complete when the future `written` is."""

    def __init__(self, staged: Future[Any] | None, written: Future[Any]) -> None:
        self.durable_at: float | None = None
        self._staged = staged
        self._written = written
        written.add_done_callback(self._set_durable)

    def _set_durable(self, _: Future[Any]) -> None:
        self.durable_at = time.perf_counter()

    def wait_staged(self) -> None:
        if self._staged is not None:
            self._staged.result()

    def wait(self) -> None:
        self._written.result()
        while self.durable_at is None:
            time.sleep(0.001)


class TorchSave:
    """`torch.save` of the tensors of this rank, then fsync."""

    def __init__(self, state: TrainingState, directory: Path, world: World) -> None:
        self._state = state
        self._directory = directory
        self._rank = world.rank

    def prepare(self) -> None:
        pass

    def _path(self, step: int) -> Path:
        return self._directory / f"step_{step}" / f"{self._rank}.pt"

    def save(self, step: int) -> PendingSave:
        path = self._path(step)
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(path, "wb") as file:
            torch.save(_local(self._state), file)
            file.flush()
            os.fsync(file.fileno())
        return _CompleteSave()

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

    def save(self, step: int) -> PendingSave:
        tensors: dict[str, Any] = dict(self._state.tensors())
        path = self._directory / f"step_{step}"
        if self._mode is None:
            dcp.save(tensors, checkpoint_id=path, process_group=self._group)
            return _CompleteSave()
        response = dcp.async_save(
            tensors,
            checkpoint_id=path,
            process_group=self._group,
            async_checkpointer_type=self._mode,
            async_stager=self._stager,
        )
        if isinstance(response, Future):
            return _FutureSave(None, response)
        return _FutureSave(response.staging_completion, response.upload_completion)

    def load(self, step: int) -> None:
        tensors: dict[str, Any] = dict(self._state.tensors())
        dcp.load(tensors, checkpoint_id=self._directory / f"step_{step}", process_group=self._group)

    def close(self) -> None:
        if self._stager is not None:
            self._stager.close()


class TorchCheckpointing:
    """Meta's `torch_checkpointing`, with prewarming. It does not sync what it writes."""

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

    def save(self, step: int) -> PendingSave:
        path = str(self._directory / f"step_{step}")
        written = self._manager.save(path, {"state": _local(self._state)})
        return _FutureSave(self._manager._staging_future, written)

    def load(self, step: int) -> None:
        target = {"state": _local(self._state)}
        loaded = self._manager.load(str(self._directory / f"step_{step}"), target)
        for name, tensor in target["state"].items():
            tensor.copy_(loaded["state"][name])

    def close(self) -> None:
        self._manager.close()


class TorchrlCkpt:
    """This project, from the request to the commit; a load verifies first."""

    def __init__(
        self, state: TrainingState, directory: Path, world: World, backend: str, threads: int
    ) -> None:
        self._state = state
        self._layout = Layout(directory)
        self._world = world
        self._backend = create("checkpoint_backends", PluginTable(type=backend, threads=threads))
        self._checkpointer = Checkpointer(
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
        self._checkpointer.prepare(self._state)

    def save(self, step: int) -> PendingSave:
        if not self._checkpointer.request(step, last=True):
            raise RuntimeError("the checkpoint could not be requested")
        self._checkpointer.save(step, self._state)
        return _TorchrlCkptSave(self._checkpointer)

    def load(self, step: int) -> None:
        directory = self._layout.step(step)
        if self._world.is_rank_zero:
            verify(directory)
        dist.barrier()
        tensors = self._state.tensors()
        self._backend.load(tensors, directory / TRAINER / TENSORS, self._world.checkpoint_group)

    def close(self) -> None:
        self._checkpointer.close()


class _TorchrlCkptSave:
    def __init__(self, checkpointer: Checkpointer) -> None:
        self._checkpointer = checkpointer
        self.durable_at: float | None = None
        if checkpointer.in_progress is None:
            self.durable_at = time.perf_counter()
        else:
            checkpointer.in_progress.add_done_callback(self._set_durable)

    def _set_durable(self, _: object) -> None:
        self.durable_at = time.perf_counter()

    def wait_staged(self) -> None:
        self._checkpointer.maybe_wait_for_staging()

    def wait(self) -> None:
        self._checkpointer.finish()


def _local(state: TrainingState) -> dict[str, torch.Tensor]:
    """Return the part of each tensor that is on this rank."""
    local = {}
    for name, tensor in state.tensors().items():
        shard = tensor.to_local() if isinstance(tensor, DTensor) else tensor
        local[name] = shard.detach()
    return local


SAVE_METHODS: dict[str, Callable[[TrainingState, Path, World], SaveMethod]] = {
    "torch.save": TorchSave,
    "dcp.save": partial(DcpSave, mode=None),
    "dcp.async_save, thread": partial(DcpSave, mode=AsyncCheckpointerType.THREAD),
    "dcp.async_save, process": partial(DcpSave, mode=AsyncCheckpointerType.PROCESS),
    "torch_checkpointing": TorchCheckpointing,
    "torchrl-ckpt dcp": partial(TorchrlCkpt, backend="dcp", threads=1),
    "torchrl-ckpt async_dcp": partial(TorchrlCkpt, backend="async_dcp", threads=1),
}
