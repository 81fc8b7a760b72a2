"""Where the bytes of a tensor are in what `torch.save` has made of it, a zip archive.

`torch.load` would unpickle, and inflate a compressed entry to any size; here nothing is executed,
and nothing is read that is not among the archive's own bytes.
"""

from __future__ import annotations

import io
import math
import struct
import zipfile
from dataclasses import dataclass
from io import FileIO
from typing import TYPE_CHECKING

import torch

from torchrl_ckpt_dcp.inert_pickle import (
    PERSISTENT,
    PickleRefused,
    Record,
    read_inert,
    whole_numbers,
)
from torchrl_ckpt_dcp.stored_metadata import DTYPES

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

_MAX_DESCRIPTION_BYTES = 64 * 1024
_LOCAL_HEADER = struct.Struct("<4s22xHH")  # Signature, length of the name, length of the extra.

_REBUILD = {f"torch._utils._rebuild_tensor_{version}" for version in ("v2", "v3")}
_NAMES = {
    *_REBUILD,
    *(f"torch.{name}" for name in vars(torch) if name.endswith("Storage")),
    "torch.storage.UntypedStorage",
    "collections.OrderedDict",
    *DTYPES,
}


@dataclass(frozen=True)
class ArchivedTensor:
    """A tensor of `shape` whose elements are in the `num_bytes` at `offset` of the file, in the
    order that `stride` (in elements) says, from the element `first` on."""

    offset: int
    num_bytes: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]
    first: int

    @property
    def is_contiguous(self) -> bool:
        """Whether the elements are all there is, in order."""
        expected = 1
        for length, step in zip(reversed(self.shape), reversed(self.stride), strict=True):
            if length != 1 and step != expected:
                return False
            expected *= length
        return self.first == 0


def find_tensor(file: FileIO, begin: int, length: int, itemsize: int) -> ArchivedTensor:
    """Find the tensor, with elements of `itemsize` bytes, in the archive at `begin` of `file`.

    Raises `PickleRefused` for an archive that is damaged or that torch would not have made.
    """
    try:
        with zipfile.ZipFile(io.BufferedReader(_Slice(file, begin, length))) as archive:
            entries = {entry.filename: entry for entry in archive.infolist()}
        description = entries["archive/data.pkl"]
        at = _data_offset(file, begin, length, description)
        if description.file_size > _MAX_DESCRIPTION_BYTES:
            raise PickleRefused("the description of a tensor is too long")
        file.seek(at)
        key, first, shape, stride = _parse(file.read(description.file_size))
        storage = entries[f"archive/data/{key}"]
        offset = _data_offset(file, begin, length, storage)
    except (zipfile.BadZipFile, struct.error, KeyError, ValueError, NotImplementedError) as error:
        raise PickleRefused(f"a tensor's archive is damaged: {error}") from None
    last = first + sum((size - 1) * step for size, step in zip(shape, stride, strict=True))
    if math.prod(shape) > 0 and (last + 1) * itemsize > storage.file_size:
        raise PickleRefused("a tensor is larger than its bytes")
    return ArchivedTensor(offset, storage.file_size, shape, stride, first)


def _data_offset(file: FileIO, begin: int, length: int, entry: zipfile.ZipInfo) -> int:
    """Where the bytes of `entry`, which must not be compressed, begin in `file`."""
    at = entry.header_offset
    file.seek(begin + at)
    signature, name_length, extra_length = _LOCAL_HEADER.unpack(file.read(_LOCAL_HEADER.size))
    at += _LOCAL_HEADER.size + name_length + extra_length
    stored = entry.compress_type == zipfile.ZIP_STORED and entry.compress_size == entry.file_size
    if signature != b"PK\x03\x04" or not stored or at + entry.file_size > length:
        raise PickleRefused("an entry of a tensor's archive is compressed, or not in it")
    return begin + at


def _parse(pickled: bytes) -> tuple[str, int, tuple[int, ...], tuple[int, ...]]:
    """Return the key of the storage, the first element, and shape and stride."""
    match read_inert(pickled, _NAMES):
        case Record(name, (Record(stored, (("storage", _, str(key), _, _),)), first, a, b, *_)) if (
            name in _REBUILD and stored == PERSISTENT
        ):
            shape, stride = whole_numbers(a), whole_numbers(b)
            if len(shape) != len(stride):
                raise PickleRefused("a tensor's shape and stride differ in length")
            return key, *whole_numbers((first,)), shape, stride
    raise PickleRefused("an archive does not hold one tensor")


class _Slice(io.RawIOBase):
    """`length` bytes of a file from `begin` on, as a file of their own."""

    def __init__(self, file: FileIO, begin: int, length: int) -> None:
        self._file = file
        self._begin = begin
        self._length = length
        self._position = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._length}[whence]
        if base + offset < 0:
            raise ValueError("before the beginning of the archive")
        self._position = base + offset
        return self._position

    def tell(self) -> int:
        return self._position

    def readinto(self, buffer: WriteableBuffer, /) -> int:
        memory = memoryview(buffer).cast("B")
        count = max(min(len(memory), self._length - self._position), 0)
        self._file.seek(self._begin + self._position)
        count = self._file.readinto(memory[:count]) or 0
        self._position += count
        return count
