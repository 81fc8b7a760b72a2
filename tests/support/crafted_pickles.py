"""Pickles in the place of DCP's `.metadata`, each of which asks for something it must not get."""

from __future__ import annotations

import pickle
import struct
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    TensorStorageMetadata,
)

_PROTOCOL = b"\x80\x04"
_CLASS = b"ctorch.distributed.checkpoint.metadata\n%s\n"


def _edited(path: Path, edit: Callable[[Metadata], Any]) -> bytes:
    """The metadata at `path`, which this program has just written, changed by `edit`."""
    metadata = pickle.loads(path.read_bytes())
    return pickle.dumps(edit(metadata) or metadata)


def _first_place(metadata: Metadata) -> Any:
    return next(iter(metadata.storage_data.values()))


def _first_tensor(metadata: Metadata) -> TensorStorageMetadata:
    return next(iter(metadata.state_dict_metadata.values()))  # type: ignore[return-value]


def _set(find: Callable[[Metadata], Any], **values: object) -> Callable[[Path], bytes]:
    def edit(metadata: Metadata) -> None:
        vars(find(metadata)).update(values)

    return lambda path: _edited(path, edit)


def _share_bytes(metadata: Metadata) -> None:
    places = list(metadata.storage_data.values())
    places[1].offset = places[0].offset


def _huge_tensor(metadata: Metadata) -> None:
    import torch

    tensor = _first_tensor(metadata)
    tensor.size = tensor.chunks[0].sizes = torch.Size([2**20, 2**20])


def _overlapping_chunks(metadata: Metadata) -> None:
    """Have two chunks with as many elements as a tensor, one of whose rows is in both of them."""
    import torch

    tensor = _first_tensor(metadata)
    (whole,) = tensor.chunks
    name, half = next(iter(metadata.state_dict_metadata)), whole.sizes[0] // 2
    sizes = torch.Size([half, *whole.sizes[1:]])
    offsets = torch.Size([half - 1, *whole.offsets[1:]])
    tensor.chunks = [ChunkStorageMetadata(at, sizes) for at in (whole.offsets, offsets)]
    place = metadata.storage_data[MetadataIndex(name, whole.offsets)]
    metadata.storage_data[MetadataIndex(name, offsets)] = replace(
        place, offset=place.offset + place.length // 2, length=place.length // 2
    )
    place.length //= 2


def _doubled(levels: int) -> object:
    """A tuple that is small in a pickle, whose text has a length of 2 to the power of `levels`."""
    value: object = ()
    for _ in range(levels):
        value = (value, value)
    return value


def _in_a_circle(metadata: Metadata) -> None:
    metadata.state_dict_metadata["itself"] = metadata  # type: ignore[assignment]


CRAFTED: dict[str, Callable[[Path], bytes]] = {
    "a class's attribute is set": lambda _: (
        _PROTOCOL + _CLASS % b"Metadata" + b"N}\x8c\x06poisonK\x01s\x86b."
    ),
    "an attribute of a class is deleted by its own state": lambda _: (
        _PROTOCOL + _CLASS % b"MetadataIndex" + b"N}\x8c\x08__hash__Ns\x86b."
    ),
    "14 bytes ask for 6 GB": lambda _: (
        _PROTOCOL + b"K\x01r" + struct.pack("<I", 400_000_000) + b"."
    ),
    "a text of 4 EB": lambda _: _PROTOCOL + b"\x8d" + struct.pack("<Q", 2**62) + b"x.",
    "bytes of 4 EB": lambda _: _PROTOCOL + b"\x8e" + struct.pack("<Q", 2**62) + b"x.",
    "a frame of 4 EB": lambda _: _PROTOCOL + b"\x95" + struct.pack("<Q", 2**62) + b"K\x01.",
    "a shape of letters": lambda _: _PROTOCOL + b"ctorch\nSize\n\x8c\x01a\x85\x85R.",
    "a shape of nothing": lambda _: _PROTOCOL + b"ctorch\nSize\nNR.",
    "a memo that is not there": lambda _: _PROTOCOL + b"h\x07.",
    "an empty stack": lambda _: _PROTOCOL + b"s.",
    "nested ten thousand deep": lambda _: _PROTOCOL + b"]" * 10_000 + b"a" * 9_999 + b".",
    "nested tuples as a key": lambda _: (
        _PROTOCOL + b"})" + b"\x94h\x00\x86" * 1 + b"\x85" * 10_000 + b"K\x01s."
    ),
    "each level twice the one below": lambda _: (
        _PROTOCOL + b"}K\x01" + b"".join(b"\x94h%c\x86" % n for n in range(60)) + b"K\x01s."
    ),
    "a name of levels, each twice the one below": lambda _: (
        _PROTOCOL + b")\x94" + b"".join(b"h%ch%c\x86\x94" % (n, n) for n in range(60)) + b"N\x93."
    ),
    "a name nested ten thousand deep": lambda _: _PROTOCOL + b"N" + b"\x85" * 10_000 + b"N\x93.",
    "two objects": lambda _: _PROTOCOL + b"K\x01K\x02.",
    "empty": lambda _: b"",
    "no pickle": lambda _: b"\xff" * 100,
    "cut off": lambda path: path.read_bytes()[:-20],
    "a list": lambda _: pickle.dumps([1, 2]),
    "no places": _set(lambda metadata: metadata, storage_data=None),
    "places of another type": _set(lambda metadata: metadata, storage_data=[1, 2]),
    "tensors of another type": _set(lambda metadata: metadata, state_dict_metadata={1: 2}),
    "a path above": _set(_first_place, relative_path=".."),
    "a path elsewhere": _set(_first_place, relative_path="/etc/passwd"),
    "a path that is a number": _set(_first_place, relative_path=3),
    "a path of levels, each twice the one below": _set(_first_place, relative_path=_doubled(60)),
    "a path with a zero byte": _set(_first_place, relative_path="a\0b"),
    "a file that is not there": _set(_first_place, relative_path="other.distcp"),
    "a place before its file": _set(_first_place, offset=-1),
    "a place behind its file": _set(_first_place, offset=10**9),
    "a place of no length": _set(_first_place, length=1),
    "a place without a length": _set(_first_place, length=None),
    "compressed": _set(_first_place, transform_descriptors=["zstd"]),
    "two tensors in one place": lambda path: _edited(path, _share_bytes),
    "a tensor of 4 TB": lambda path: _edited(path, _huge_tensor),
    "chunks that overlap": lambda path: _edited(path, _overlapping_chunks),
    "a tensor without a shape": _set(_first_tensor, size=None),
    "a tensor without chunks": _set(_first_tensor, chunks=[]),
    "a tensor without a dtype": _set(_first_tensor, properties=None),
    "in a circle": lambda path: _edited(path, _in_a_circle),
}
"""By what it does: the content of the file, made from the good one at a path."""
