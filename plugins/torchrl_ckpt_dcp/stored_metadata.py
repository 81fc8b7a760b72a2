"""DCP's `.metadata`, read and checked: which tensor is where in which file.

The file is a pickle that anybody may have made. It is read as inert records (`inert_pickle.py`);
real objects of DCP are made of those that fit each other and the files beside it.
"""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch.distributed.checkpoint.filesystem import _StorageInfo
from torch.distributed.checkpoint.metadata import (
    BytesStorageMetadata,
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    TensorProperties,
    TensorStorageMetadata,
)

from torchrl_ckpt.plugin_api.errors import CheckpointDamaged
from torchrl_ckpt.plugin_api.untrusted_files import open_regular, read_bounded
from torchrl_ckpt_dcp.inert_pickle import (
    Name,
    Pairs,
    PickleRefused,
    Record,
    read_inert,
    whole_numbers,
)

METADATA_FILE = ".metadata"

_MAX_METADATA_BYTES = 64 * 1024 * 1024  # About 300,000 shards; reading takes 100 times the memory.
_MAX_DIMENSIONS = 64  # torch has no more.
_MAX_BYTES = 2**63

_FILE_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,254}")

_METADATA = "torch.distributed.checkpoint.metadata."
_STORAGE_INFO = "torch.distributed.checkpoint.filesystem._StorageInfo"
_LAYOUT = "torch.serialization._get_layout"
_SIZE = "torch.Size"
DTYPES = {
    str(value): value
    for value in vars(torch).values()
    if isinstance(value, torch.dtype) and not str(value).startswith(("torch.q", "torch.bits"))
}
"""The dtypes of tensors by their names in a pickle, such as `torch.float32`."""

_NAMES = {
    *(
        _METADATA + name
        for name in (
            "_MEM_FORMAT_ENCODING",
            "BytesStorageMetadata",
            "ChunkStorageMetadata",
            "Metadata",
            "MetadataIndex",
            "StorageMeta",
            "TensorProperties",
            "TensorStorageMetadata",
        )
    ),
    _STORAGE_INFO,
    _LAYOUT,
    _SIZE,
    *DTYPES,
}


def read_metadata(directory: Path) -> Metadata:
    """Read and check `.metadata`; return what it says about tensors and their places.

    Every tensor is then wholly covered by chunks, every chunk has a place of its own that lies
    within a file in `directory`, and a place is at least as long as the chunk: to read all tensors
    takes no more memory than the files have bytes. Raises `CheckpointDamaged`.
    """
    path = directory / METADATA_FILE
    try:
        content = read_inert(read_bounded(path, _MAX_METADATA_BYTES), _NAMES)
        state = _state(content, "Metadata")
        tensors = _tensors(state.get("state_dict_metadata"))
        places = _places(state.get("storage_data"))
        _check_places(tensors, places)
        _check_files(directory, places)
    except OSError as error:
        raise CheckpointDamaged(f"{path} cannot be read: {error.strerror}") from None
    except PickleRefused as error:
        raise CheckpointDamaged(f"{path} is damaged: {error}") from None
    return Metadata(state_dict_metadata=dict(tensors), storage_data=dict(places))


def _tensors(value: object) -> dict[str, TensorStorageMetadata | BytesStorageMetadata]:
    tensors: dict[str, TensorStorageMetadata | BytesStorageMetadata] = {}
    for name, description in _pairs(value):
        if not isinstance(name, str) or name in tensors:
            raise PickleRefused("its tensors have no names, or one twice")
        if isinstance(description, Record) and description.name.endswith(".BytesStorageMetadata"):
            tensors[name] = BytesStorageMetadata()
        else:
            tensors[name] = _tensor(name, description)
    return tensors


def _tensor(name: str, description: object) -> TensorStorageMetadata:
    fields = _state(description, "TensorStorageMetadata")
    dtype, size = _dtype(fields.get("properties")), _size(fields.get("size"))
    chunks = fields.get("chunks")
    if not isinstance(chunks, list):
        raise PickleRefused(f"{_quoted(name)} has no list of chunks")
    if math.prod(size) * dtype.itemsize >= _MAX_BYTES:
        raise PickleRefused(f"{_quoted(name)} is larger than any memory")
    found: list[ChunkStorageMetadata] = []
    for chunk in chunks:
        chunk_fields = _state(chunk, "ChunkStorageMetadata")
        offsets, sizes = _size(chunk_fields.get("offsets")), _size(chunk_fields.get("sizes"))
        inside = len(offsets) == len(sizes) == len(size) and all(
            offset + length <= whole
            for offset, length, whole in zip(offsets, sizes, size, strict=True)
        )
        if not inside:
            raise PickleRefused(f"a chunk of {_quoted(name)} lies outside of it")
        found.append(ChunkStorageMetadata(offsets, sizes))
    # Several ranks may have an empty chunk, all at the tensor's end.
    if not _cover([chunk for chunk in found if math.prod(chunk.sizes) > 0], size):
        raise PickleRefused(f"the chunks of {_quoted(name)} are not the whole tensor")
    return TensorStorageMetadata(TensorProperties(dtype), size, found)


def _cover(chunks: Sequence[ChunkStorageMetadata], size: torch.Size, dimension: int = 0) -> bool:
    """Whether the `chunks`, none of them empty, hold each element of `size` once.

    They must be cut along the first dimension, each of these slabs along the second one, and so on,
    as those of a DTensor are. `dimension` is the next one to look at.
    """
    if math.prod(size) == 0:
        return not chunks
    if dimension == len(size):
        return len(chunks) == 1
    slabs: dict[tuple[int, int], list[ChunkStorageMetadata]] = defaultdict(list)
    for chunk in chunks:
        slabs[chunk.offsets[dimension], chunk.sizes[dimension]].append(chunk)
    end = 0
    for offset, length in sorted(slabs):
        if offset != end:
            return False
        end += length
    return end == size[dimension] and all(
        _cover(slab, size, dimension + 1) for slab in slabs.values()
    )


def _places(value: object) -> dict[MetadataIndex, _StorageInfo]:
    places: dict[MetadataIndex, _StorageInfo] = {}
    for key, place in _pairs(value):
        index, info = _state(key, "MetadataIndex"), _state(place, _STORAGE_INFO)
        fqn, file = index.get("fqn"), info.get("relative_path")
        if not isinstance(fqn, str):
            raise PickleRefused("a place is of no tensor")
        if not isinstance(file, str):
            raise PickleRefused(f"the place of {_quoted(fqn)} names no file")
        if not _FILE_NAME.fullmatch(file):
            raise PickleRefused(
                f"{_quoted(fqn)} points outside of its directory, to {_quoted(file)}"
            )
        if info.get("transform_descriptors"):
            raise PickleRefused(
                f"{_quoted(fqn)} is stored compressed, which this program never does"
            )
        at = index.get("offset")
        position = MetadataIndex(fqn, None if at is None else _size(at))
        if position in places:
            raise PickleRefused(f"{_quoted(fqn)} is in two places")
        offset, length = whole_numbers((info.get("offset"), info.get("length")))
        places[position] = _StorageInfo(file, offset, length)
    return places


def _check_places(
    tensors: Mapping[str, TensorStorageMetadata | BytesStorageMetadata],
    places: Mapping[MetadataIndex, _StorageInfo],
) -> None:
    """Every chunk has a place that is long enough."""
    expected: set[MetadataIndex] = set()
    for name, tensor in tensors.items():
        if isinstance(tensor, BytesStorageMetadata):
            expected.add(MetadataIndex(name))
            continue
        for chunk in tensor.chunks:
            index = MetadataIndex(name, chunk.offsets)
            expected.add(index)
            num_bytes = math.prod(chunk.sizes) * tensor.properties.dtype.itemsize
            if index in places and places[index].length < num_bytes:
                raise PickleRefused(
                    f"the place of {_quoted(name)} is shorter than its {num_bytes} bytes"
                )
    if expected != places.keys():
        name = min(index.fqn for index in expected ^ places.keys())
        raise PickleRefused(
            f"{_quoted(name)} has a chunk without a place, or a place without a chunk"
        )


def _check_files(directory: Path, places: Mapping[MetadataIndex, _StorageInfo]) -> None:
    """The places of each file lie within it and do not overlap."""
    by_file: dict[str, list[_StorageInfo]] = defaultdict(list)
    for place in places.values():
        by_file[place.relative_path].append(place)
    for name, of_file in by_file.items():
        try:
            with open_regular(directory / name) as file:
                size = file.seek(0, 2)
        except OSError as error:
            raise PickleRefused(
                f"{name}, which it names, cannot be read: {error.strerror}"
            ) from None
        end = 0
        for place in sorted(of_file, key=lambda place: (place.offset, place.length)):
            if place.offset < end:
                raise PickleRefused(f"two tensors share bytes of {name}")
            end = place.offset + place.length
        if end > size:
            raise PickleRefused(f"{name} has {size} bytes, and its tensors end at {end}")


def _state(value: object, name: str) -> dict[str, object]:
    """The attributes of the record called `name`, which is a class of DCP's metadata if short."""
    full_name = name if "." in name else _METADATA + name
    if not (isinstance(value, Record) and value.name == full_name):
        raise PickleRefused(f"{full_name.rpartition('.')[2]} is missing")
    state = dict[str, object]()
    for key, item in _pairs(value.state):
        if not isinstance(key, str):
            raise PickleRefused("an attribute has no name")
        state[key] = item
    return state


def _pairs(value: object) -> list[tuple[object, object]]:
    if not isinstance(value, Pairs):
        raise PickleRefused("a dictionary is missing")
    return value.items


def _dtype(value: object) -> torch.dtype:
    """The dtype in a `TensorProperties`, whose other fields DCP ignores."""
    if isinstance(value, Record) and value.name == _METADATA + "TensorProperties":
        state = value.state
        if isinstance(state, tuple) and state and isinstance(state[0], Name):
            dtype = DTYPES.get(state[0].name)
            if dtype is not None:
                return dtype
    raise PickleRefused("a tensor has no dtype")


def _size(value: object) -> torch.Size:
    if isinstance(value, Record) and value.name == _SIZE and len(value.arguments) == 1:
        size = whole_numbers(value.arguments[0])
        if len(size) <= _MAX_DIMENSIONS:
            return torch.Size(size)
    raise PickleRefused("a shape is missing")


def _quoted(text: str) -> str:
    """Text out of the file, for a message: short, and without control characters."""
    return repr(text[:200])
