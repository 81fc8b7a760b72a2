"""What ranks tell each other about a save: their plans and what they wrote, as JSON.

DCP's own collectives exchange pickled objects, which would execute what a stranger sends.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch.distributed import ProcessGroup
from torch.distributed.checkpoint.filesystem import _StorageInfo
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    MetadataIndex,
    TensorProperties,
)
from torch.distributed.checkpoint.planner import (
    SavePlan,
    TensorWriteData,
    WriteItem,
    WriteItemType,
)
from torch.distributed.checkpoint.storage import WriteResult

from torchrl_ckpt.plugin_api.collectives import gather_json
from torchrl_ckpt.plugin_api.errors import CheckpointFailed
from torchrl_ckpt.plugin_api.plugin import Json


def gather_plans(plan: SavePlan, group: ProcessGroup) -> list[SavePlan]:
    """Return the local plan of every rank, of tensors alone. Collective."""
    gathered = gather_json([_item_to_json(item) for item in plan.items], group)
    return [SavePlan([_item_from_json(item) for item in items]) for items in gathered]


def gather_results(
    results: Sequence[WriteResult], failure: str | None, group: ProcessGroup
) -> list[list[WriteResult]]:
    """Return the results of every rank; `failure` says why this one has none. Collective.

    Raises `CheckpointFailed` on all ranks if one has failed.
    """
    gathered = gather_json([[_result_to_json(result) for result in results], failure], group)
    failures = [f"rank {rank}: {text}" for rank, (_, text) in enumerate(gathered) if text]
    if failures:
        raise CheckpointFailed("; ".join(failures))
    return [[_result_from_json(result) for result in of_rank] for of_rank, _ in gathered]


def _result_to_json(result: WriteResult) -> Json:
    stored = result.storage_data
    return {
        "index": _index_to_json(result.index),
        "size": result.size_in_bytes,
        "file": stored.relative_path,
        "offset": stored.offset,
        "length": stored.length,
    }


def _result_from_json(data: Json) -> WriteResult:
    stored = _StorageInfo(data["file"], data["offset"], data["length"])
    return WriteResult(_index_from_json(data["index"]), data["size"], stored)


def _item_to_json(item: WriteItem) -> Json:
    tensor = item.tensor_data
    assert tensor is not None
    return {
        "index": _index_to_json(item.index),
        "type": item.type.name,
        "offsets": list(tensor.chunk.offsets),
        "sizes": list(tensor.chunk.sizes),
        "size": list(tensor.size),
        "dtype": str(tensor.properties.dtype).removeprefix("torch."),
        "requires_grad": tensor.properties.requires_grad,
    }


def _item_from_json(data: Json) -> WriteItem:
    dtype = getattr(torch, data["dtype"])
    assert isinstance(dtype, torch.dtype)
    return WriteItem(
        _index_from_json(data["index"]),
        WriteItemType[data["type"]],
        tensor_data=TensorWriteData(
            ChunkStorageMetadata(torch.Size(data["offsets"]), torch.Size(data["sizes"])),
            TensorProperties(dtype, requires_grad=data["requires_grad"]),
            torch.Size(data["size"]),
        ),
    )


def _index_to_json(index: MetadataIndex) -> Json:
    return [index.fqn, None if index.offset is None else list(index.offset), index.index]


def _index_from_json(data: Json) -> MetadataIndex:
    name, offset, number = data
    return MetadataIndex(name, None if offset is None else torch.Size(offset), number)
