"""Memory shared by two processes, with a slot in it for every tensor of a state."""

from __future__ import annotations

import mmap
import os
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

_ALIGNMENT_BYTES = 4096
_HEADER_BYTES = 4096  # Holds one int64, the number of bytes written so far.


@dataclass(frozen=True)
class BufferSlot:
    """The location of a tensor. `offset` is in bytes from the start of the memory."""

    offset: int
    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def num_bytes(self) -> int:
        return int(np.prod(self.shape, dtype=np.int64)) * self.dtype.itemsize


def allocate_slots(tensors: Sequence[torch.Tensor]) -> list[BufferSlot]:
    """Return a slot for each tensor, in order, each starting on a page."""
    slots = []
    offset = _HEADER_BYTES
    for tensor in tensors:
        slots.append(BufferSlot(offset, tuple(tensor.shape), tensor.dtype))
        offset += -(-slots[-1].num_bytes // _ALIGNMENT_BYTES) * _ALIGNMENT_BYTES
    return slots


class StagingArea:
    """This process's view of the shared memory: `tensors`, and how many of their bytes are written.

    The memory belongs to the descriptor `fd` (a memfd, which unlike /dev/shm has no size limit of
    its own) and is freed when the last process closes it.
    """

    def __init__(self, slots: Sequence[BufferSlot], fd: int) -> None:
        self.fd = fd
        self.slots = tuple(slots)
        self._memory = mmap.mmap(fd, os.fstat(fd).st_size)
        self._written_bytes = np.frombuffer(self._memory, dtype=np.int64, count=1)
        # One storage per tensor, since `torch.save` writes whole storages.
        self.tensors = [self._tensor(slot) for slot in slots]

    @classmethod
    def create(cls, slots: Sequence[BufferSlot]) -> StagingArea:
        """Create the memory. It takes up RAM only as it is touched."""
        fd = os.memfd_create("checkpoint staging")
        last = slots[-1] if slots else BufferSlot(_HEADER_BYTES, (), torch.uint8)
        os.ftruncate(fd, last.offset + last.num_bytes)
        return cls(slots, fd)

    @property
    def num_bytes(self) -> int:
        """The size of all tensors together."""
        return sum(slot.num_bytes for slot in self.slots)

    @property
    def written_bytes(self) -> int:
        """How many bytes of the current save the writer process has written."""
        return int(self._written_bytes[0])

    @written_bytes.setter
    def written_bytes(self, value: int) -> None:
        self._written_bytes[0] = value

    def touch(self) -> None:
        """Have the kernel allocate the memory now, which takes many times as long as filling it."""
        for tensor in self.tensors:
            tensor.zero_()

    def pin(self) -> None:
        """Lock the memory, so that copies from a GPU run asynchronously.

        Raises `RuntimeError` where CUDA refuses.
        """
        whole = torch.frombuffer(self._memory, dtype=torch.uint8)
        error = torch.cuda.cudart().cudaHostRegister(whole.data_ptr(), whole.numel(), 0)
        if error.value != 0:
            raise RuntimeError(f"cudaHostRegister of {whole.numel()} bytes failed: {error}")

    def close(self) -> None:
        """Release the memory. The kernel frees it once no tensor refers to it."""
        self.tensors.clear()
        os.close(self.fd)

    def _tensor(self, slot: BufferSlot) -> torch.Tensor:
        if slot.num_bytes == 0:
            return torch.empty(slot.shape, dtype=slot.dtype)
        count = slot.num_bytes // slot.dtype.itemsize
        flat = torch.frombuffer(self._memory, dtype=slot.dtype, count=count, offset=slot.offset)
        return flat.view(slot.shape)
