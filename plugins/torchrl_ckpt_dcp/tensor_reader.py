"""DCP's file reader, restricted so that it executes nothing that it reads."""

from __future__ import annotations

import pickle
from dataclasses import replace
from io import FileIO
from pathlib import Path
from typing import Any

import torch
from torch.distributed.checkpoint import FileSystemReader
from torch.distributed.checkpoint.metadata import Metadata, StorageMeta
from torch.distributed.checkpoint.planner import LoadItemType, LoadPlan, LoadPlanner, ReadItem
from torch.futures import Future

from torchrl_ckpt.plugin_api.errors import CheckpointDamaged

_METADATA_CLASSES = {
    "torch.distributed.checkpoint.metadata": {
        "_MEM_FORMAT_ENCODING",
        "BytesStorageMetadata",
        "ChunkStorageMetadata",
        "Metadata",
        "MetadataIndex",
        "StorageMeta",
        "TensorProperties",
        "TensorStorageMetadata",
    },
    "torch.distributed.checkpoint.filesystem": {"_StorageInfo"},
    "torch.serialization": {"_get_layout"},
    "torch": {"Size"},
    "collections": {"OrderedDict"},
}


class MetadataUnpickler(pickle.Unpickler):
    """Allows the classes that DCP's metadata consists of and torch's dtypes, and nothing else."""

    def find_class(self, module: str, name: str) -> Any:
        if name in _METADATA_CLASSES.get(module, ()):
            return super().find_class(module, name)
        if module == "torch" and isinstance(found := getattr(torch, name, None), torch.dtype):
            return found
        raise CheckpointDamaged(
            f"the checkpoint's .metadata asks for {module}.{name}, which is not part of DCP's "
            "metadata: this program did not write it. None of it was executed"
        )


def read_metadata(directory: Path) -> Metadata:
    """Read `.metadata`. Raises `CheckpointDamaged` for anything but DCP's own metadata."""
    path = directory / ".metadata"
    try:
        with open(path, "rb") as file:
            metadata = MetadataUnpickler(file).load()
    except (OSError, EOFError, pickle.UnpicklingError, AttributeError, ValueError) as error:
        raise CheckpointDamaged(f"{path} cannot be read: {error}") from None
    if not isinstance(metadata, Metadata):
        raise CheckpointDamaged(f"{path} is not DCP's metadata")
    for stored in (metadata.storage_data or {}).values():
        if Path(stored.relative_path).name != stored.relative_path:
            raise CheckpointDamaged(f"{path} points outside its directory: {stored.relative_path}")
    return metadata


class TensorReader(FileSystemReader):
    """Reads tensors, and refuses byte entries, which DCP would unpickle."""

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        metadata = read_metadata(Path(self.path))
        metadata.storage_meta = StorageMeta(load_id=self.load_id)
        return metadata

    def prepare_local_plan(self, plan: LoadPlan) -> LoadPlan:
        for item in plan.items:
            if item.type == LoadItemType.BYTE_IO:
                raise CheckpointDamaged(
                    f"{self.path} holds {item.storage_index.fqn} as pickled bytes, not as a tensor"
                )
        return plan

    def read_data(self, plan: LoadPlan, planner: LoadPlanner) -> Future[None]:
        """Read tensors directly into their targets where possible, and leave the rest to DCP.

        DCP reads each tensor into new memory first, and the kernel takes longer to allocate that
        than to read the file.
        """
        remaining = [item for item in plan.items if not self._read_in_place(item, planner)]
        return super().read_data(replace(plan, items=remaining), planner)

    def _read_in_place(self, item: ReadItem, planner: LoadPlanner) -> bool:
        """Read `item` if it is a whole stored tensor and its target contiguous on CPU; return
        whether it was."""
        info = self.storage_data[item.storage_index]
        target = planner.resolve_tensor(item).detach()
        if target.numel() == 0 or not (target.is_cpu and target.is_contiguous()):
            return False
        with open(Path(self.path) / info.relative_path, "rb", buffering=0) as file:
            archive = self._slice_file(file, info)
            # On "meta" no data is read, only shape, dtype and the offset in the file.
            stored = torch.load(archive, map_location="meta", weights_only=True)
            fits = stored.is_contiguous() and stored.dtype == target.dtype
            if not (fits and stored.shape == target.shape == item.lengths):
                return False
            file.seek(info.offset + stored.untyped_storage()._checkpoint_offset)
            _fill(memoryview(target.reshape(-1).view(torch.uint8).numpy()), file)
        planner.commit_tensor(item, target)
        return True


def _fill(memory: memoryview, file: FileIO) -> None:
    while memory:
        count = file.readinto(memory)
        if not count:
            raise CheckpointDamaged(f"{file.name} is truncated")
        memory = memory[count:]
