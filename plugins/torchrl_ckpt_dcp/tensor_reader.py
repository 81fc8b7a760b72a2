"""Reads the tensors that DCP has written, in one process or over ranks, and executes nothing."""

from __future__ import annotations

from collections.abc import Collection
from io import FileIO
from pathlib import Path
from typing import Any

import torch
from torch.distributed.checkpoint import FileSystemReader
from torch.distributed.checkpoint.filesystem import _StorageInfo
from torch.distributed.checkpoint.metadata import (
    Metadata,
    MetadataIndex,
    StorageMeta,
    TensorStorageMetadata,
)
from torch.distributed.checkpoint.planner import LoadItemType, LoadPlan, LoadPlanner
from torch.futures import Future

from torchrl_ckpt.plugin_api.errors import CheckpointDamaged
from torchrl_ckpt.plugin_api.untrusted_files import open_regular
from torchrl_ckpt_dcp.inert_pickle import PickleRefused
from torchrl_ckpt_dcp.stored_metadata import read_metadata
from torchrl_ckpt_dcp.tensor_archive import ArchivedTensor, find_tensor


class TensorReader(FileSystemReader):
    """DCP's reader with its own way to read metadata and tensors. It refuses byte entries, which
    DCP would unpickle."""

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        metadata = read_metadata(Path(self.path))
        metadata.storage_meta = StorageMeta(load_id=self.load_id)
        return metadata

    def set_up_storage_reader(
        self, metadata: Metadata, is_coordinator: bool, *args: Any, **kwargs: Any
    ) -> None:
        super().set_up_storage_reader(metadata, is_coordinator, *args, **kwargs)
        self._shapes = {
            MetadataIndex(name, chunk.offsets): chunk.sizes
            for name, stored in metadata.state_dict_metadata.items()
            if isinstance(stored, TensorStorageMetadata)
            for chunk in stored.chunks
        }

    def prepare_local_plan(self, plan: LoadPlan) -> LoadPlan:
        for item in plan.items:
            if item.type == LoadItemType.BYTE_IO:
                raise CheckpointDamaged(
                    f"{self.path} holds {item.storage_index.fqn} as pickled bytes, not as a tensor"
                )
        return plan

    def read_data(self, plan: LoadPlan, planner: LoadPlanner) -> Future[None]:
        for item in plan.items:
            place, shape = self.storage_data[item.storage_index], self._shapes[item.storage_index]
            target = planner.resolve_tensor(item).detach()
            _read_chunk(Path(self.path), place, shape, target, item.storage_offsets, item.lengths)
            planner.commit_tensor(item, target)
        done: Future[None] = Future()
        done.set_result(None)
        return done


def read_tensors(directory: Path, names: Collection[str]) -> dict[str, torch.Tensor]:
    """Read the tensors `names` whole, in this process. Raises `CheckpointDamaged`, and `KeyError`
    for a name that there is not."""
    metadata = read_metadata(directory)
    tensors: dict[str, torch.Tensor] = {}
    for name in names:
        stored = metadata.state_dict_metadata[name]
        if not isinstance(stored, TensorStorageMetadata):
            raise CheckpointDamaged(f"{directory} holds {name} as pickled bytes, not as a tensor")
        tensors[name] = torch.empty(stored.size, dtype=stored.properties.dtype)
        for chunk in stored.chunks:
            place = metadata.storage_data[MetadataIndex(name, chunk.offsets)]
            target = tensors[name]
            for dimension, (begin, size) in enumerate(zip(chunk.offsets, chunk.sizes, strict=True)):
                target = target.narrow(dimension, begin, size)
            begin_of_chunk = torch.Size([0] * len(chunk.sizes))
            _read_chunk(directory, place, chunk.sizes, target, begin_of_chunk, chunk.sizes)
    return tensors


def _read_chunk(
    directory: Path,
    place: _StorageInfo,
    shape: torch.Size,
    target: torch.Tensor,
    offsets: torch.Size,
    lengths: torch.Size,
) -> None:
    """Fill `target`, of shape `lengths`, with what begins at `offsets` of the chunk at `place`.

    Straight from the file where possible: the kernel takes longer to allocate new memory than to
    read the file. Raises `CheckpointDamaged`.
    """
    if target.numel() == 0:
        return
    path = directory / place.relative_path
    try:
        with open_regular(path) as file:
            found = find_tensor(file, place.offset, place.length, target.itemsize)
            if found.shape != tuple(shape):
                raise PickleRefused(f"a tensor is {list(found.shape)} and not {list(shape)}")
            if lengths == shape and found.is_contiguous and _is_plain(target):
                _fill(target, file, found.offset)
                return
            chunk = _read_archived(file, found, target.dtype)
    except PickleRefused as error:
        raise CheckpointDamaged(f"{path} is damaged: {error}") from None
    except OSError as error:
        raise CheckpointDamaged(f"{path} cannot be read: {error.strerror}") from None
    for dimension, (begin, size) in enumerate(zip(offsets, lengths, strict=True)):
        chunk = chunk.narrow(dimension, begin, size)
    target.copy_(chunk)


def _is_plain(target: torch.Tensor) -> bool:
    return target.is_cpu and target.is_contiguous()


def _read_archived(file: FileIO, found: ArchivedTensor, dtype: torch.dtype) -> torch.Tensor:
    """Read a whole chunk into new memory."""
    elements = torch.empty(found.num_bytes // dtype.itemsize, dtype=dtype)
    _fill(elements, file, found.offset)
    return elements.as_strided(found.shape, found.stride, found.first)


def _fill(target: torch.Tensor, file: FileIO, offset: int) -> None:
    """Read the elements of `target`, which is contiguous and on CPU, from `offset` of the file."""
    memory = memoryview(target.reshape(-1).view(torch.uint8).numpy())
    file.seek(offset)
    while memory:
        count = file.readinto(memory)
        if not count:
            raise PickleRefused("it is truncated")
        memory = memory[count:]
