"""Memory that two processes share, with a place in it for every tensor of a state."""

from __future__ import annotations

import mmap
import os
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

_ALIGNMENT = 4096
_HEADER = 4096  # Holds the number of bytes that the writer has written.


@dataclass(frozen=True)
class Place:
    """Where a tensor lies. `offset` is in bytes from the start of the memory."""

    offset: int
    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def num_bytes(self) -> int:
        return int(np.prod(self.shape, dtype=np.int64)) * self.dtype.itemsize


def lay_out(tensors: Sequence[torch.Tensor]) -> list[Place]:
    """A place for each, one after the other."""
    places = []
    offset = _HEADER
    for tensor in tensors:
        places.append(Place(offset, tuple(tensor.shape), tensor.dtype))
        offset += -(-places[-1].num_bytes // _ALIGNMENT) * _ALIGNMENT
    return places


class StagingArea:
    """The shared memory as this process sees it: `tensors`, and how much of them is written.

    The memory belongs to the descriptor `fd` (a memfd, which unlike /dev/shm has no limit of its
    own) and goes with the last process that has it open.
    """

    def __init__(self, places: Sequence[Place], fd: int) -> None:
        self.fd = fd
        self.places = tuple(places)
        self._memory = mmap.mmap(fd, os.fstat(fd).st_size)
        self._written = np.frombuffer(self._memory, dtype=np.int64, count=1)
        # Each has a storage of its own, since `torch.save` writes storages as they are.
        self.tensors = [self._tensor(place) for place in places]

    @classmethod
    def create(cls, places: Sequence[Place]) -> StagingArea:
        """New memory, which takes room only as it is touched."""
        fd = os.memfd_create("checkpoint staging")
        last = places[-1] if places else Place(_HEADER, (), torch.uint8)
        os.ftruncate(fd, last.offset + last.num_bytes)
        return cls(places, fd)

    @property
    def num_bytes(self) -> int:
        return sum(place.num_bytes for place in self.places)

    @property
    def written(self) -> int:
        """Bytes that the writer has written of the save under way."""
        return int(self._written[0])

    @written.setter
    def written(self, value: int) -> None:
        self._written[0] = value

    def touch(self) -> None:
        """Have the kernel find the memory now; that costs many times what filling it does."""
        for tensor in self.tensors:
            tensor.zero_()

    def pin(self) -> None:
        """Lock the memory for copies from a GPU, which then run beside everything else."""
        whole = torch.frombuffer(self._memory, dtype=torch.uint8)
        error = torch.cuda.cudart().cudaHostRegister(whole.data_ptr(), whole.numel(), 0)
        if error.value != 0:
            raise RuntimeError(f"cudaHostRegister of {whole.numel()} bytes failed: {error}")

    def close(self) -> None:
        """Give the memory back, as soon as no tensor of it is left."""
        self.tensors.clear()
        os.close(self.fd)

    def _tensor(self, place: Place) -> torch.Tensor:
        if place.num_bytes == 0:
            return torch.empty(place.shape, dtype=place.dtype)
        count = place.num_bytes // place.dtype.itemsize
        flat = torch.frombuffer(self._memory, dtype=place.dtype, count=count, offset=place.offset)
        return flat.view(place.shape)
