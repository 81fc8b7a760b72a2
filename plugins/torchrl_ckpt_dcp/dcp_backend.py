"""The checkpoint backend `dcp`: torch's Distributed Checkpoint on a local or shared file system."""

from __future__ import annotations

import time
import warnings
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import torch
import torch.distributed.checkpoint as dcp
from pydantic import BaseModel, ConfigDict, Field
from torch.distributed import ProcessGroup
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.metadata import Metadata, TensorStorageMetadata
from torch.distributed.checkpoint.storage import WriteResult

from torchrl_ckpt.plugin_api.checkpoint_backends import Advance, Save, TensorDescription, Written
from torchrl_ckpt.plugin_api.errors import CheckpointFailed, CheckpointMismatch, UserError
from torchrl_ckpt_dcp.planned_save import plan_save
from torchrl_ckpt_dcp.rank_exchange import gather_results
from torchrl_ckpt_dcp.recording_writer import RecordingWriter
from torchrl_ckpt_dcp.stored_metadata import read_metadata
from torchrl_ckpt_dcp.tensor_reader import TensorReader, read_tensors


class DcpConfig(BaseModel):
    """Options of `dcp`."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    threads: Annotated[int, Field(ge=1)] = 1
    """Number of files per rank, each written by a thread of its own."""


class FinishedSave:
    """A save that was complete when `save` returned."""

    def __init__(self, written: Written) -> None:
        self._written = written

    def wait_staged(self) -> None:
        pass

    def wait_written(self, advance: Advance = lambda _: None) -> Written:
        advance(sum(file.size for file in self._written.files))
        return self._written


class DcpBackend:
    """Saves synchronously: training continues once every byte is durable.

    Each rank writes its shards; replicated tensors are written once. A load reshards, so the number
    of ranks may change.
    """

    plugin_api = 1
    file_format = "dcp"
    in_background = False
    Config: type[DcpConfig] = DcpConfig

    def __init__(self, config: DcpConfig) -> None:
        self.config = config

    def prepare(self, state: Mapping[str, torch.Tensor], group: ProcessGroup) -> None:
        """Do nothing: each save makes its own plan."""

    def save(self, state: Mapping[str, torch.Tensor], directory: Path, group: ProcessGroup) -> Save:
        began = time.perf_counter()
        planned = plan_save(state, group)
        writer = RecordingWriter(directory, thread_count=self.config.threads)
        results: list[WriteResult] = []
        with _recorded_failure() as failure:
            results = writer.write_plan(planned.plan, planned.tensors(state))
        all_results = gather_results(results, failure.message, group)
        with _recorded_failure() as failure:
            if planned.metadata is not None:
                writer.finish(planned.metadata, all_results)
        gather_results([], failure.message, group)
        files = writer.durable_files()
        seconds = time.perf_counter() - began
        return FinishedSave(
            Written(files, {"write_seconds": seconds, "hash_seconds": writer.hash_seconds})
        )

    def load(self, state: Mapping[str, torch.Tensor], directory: Path, group: ProcessGroup) -> None:
        _check_fit(state, read_metadata(directory), directory)
        with _unwrapped_errors(), warnings.catch_warnings():
            # Each rank reads what it needs and asks no other one: DCP's collectives pickle.
            warnings.filterwarnings("ignore", "torch.distributed is disabled")
            dcp.load(dict(state), storage_reader=TensorReader(directory), no_dist=True)

    def describe(self, directory: Path) -> list[TensorDescription]:
        return [
            TensorDescription(name, tuple(stored.size), _dtype_name(stored.properties.dtype))
            for name, stored in _stored_tensors(directory).items()
        ]

    def read(self, directory: Path, names: Collection[str]) -> dict[str, torch.Tensor]:
        return read_tensors(directory, names)

    def close(self) -> None:
        pass


def _stored_tensors(directory: Path) -> dict[str, TensorStorageMetadata]:
    stored = sorted(read_metadata(directory).state_dict_metadata.items())
    return {name: found for name, found in stored if isinstance(found, TensorStorageMetadata)}


@dataclass
class _Failure:
    """Why a block failed on this rank; no message if it did not."""

    message: str | None = None


@contextmanager
def _recorded_failure() -> Iterator[_Failure]:
    """Record what the block raises, of which the other ranks must learn."""
    failure = _Failure()
    try:
        yield failure
    except Exception as error:
        failure.message = str(error) or repr(error)


def _dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


@contextmanager
def _unwrapped_errors() -> Iterator[None]:
    """Unwrap the `BaseException` in which DCP collects errors.

    Raises the `UserError` in it, or `CheckpointFailed` with its message.
    """
    try:
        yield
    except CheckpointException as error:
        cause, _ = next(iter(error.failures.values()))
        if isinstance(cause, UserError):
            raise cause from None
        raise CheckpointFailed(str(cause)) from cause


def _check_fit(state: Mapping[str, torch.Tensor], metadata: Metadata, directory: Path) -> None:
    stored = metadata.state_dict_metadata
    faults = [f"{name} is missing" for name in state if name not in stored]
    faults += [f"{name} is in the checkpoint only" for name in stored if name not in state]
    for name, tensor in state.items():
        found = stored.get(name)
        if isinstance(found, TensorStorageMetadata) and (
            found.size != tensor.size() or found.properties.dtype != tensor.dtype
        ):
            faults.append(
                f"{name} is {found.properties.dtype} {list(found.size)}, "
                f"expected {tensor.dtype} {list(tensor.size())}"
            )
    if faults:
        shown = "; ".join(faults[:5]) + (f"; and {len(faults) - 5} more" if faults[5:] else "")
        raise CheckpointMismatch(
            f"{directory} does not fit this model and optimiser: {shown}. "
            "Resume with the `model` that the checkpoint was made with"
        )
