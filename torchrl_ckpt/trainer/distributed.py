"""Who trains beside this process, on which device, and with which random numbers."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar

import numpy as np
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

T = TypeVar("T")


@dataclass(frozen=True)
class World:
    """This rank's place. `checkpoint_group` is a gloo group that only checkpointing uses: its
    collectives run beside the training's and must not mix with them."""

    rank: int
    size: int
    device: torch.device
    mesh: DeviceMesh
    checkpoint_group: dist.ProcessGroup

    @property
    def leads(self) -> bool:
        """Whether this rank does what is done once."""
        return self.rank == 0

    def sum(self, values: list[float]) -> list[float]:
        """The sum of each value over all ranks, in float64."""
        return self._reduce(values, dist.ReduceOp.SUM)

    def max(self, value: float) -> float:
        return self._reduce([value], dist.ReduceOp.MAX)[0]

    def gather(self, value: T) -> list[T]:
        """Every rank's `value`, over the checkpoint's group."""
        if self.size == 1:  # Pickling and a collective for nobody.
            return [value]
        gathered: list[T] = [value] * self.size
        dist.all_gather_object(gathered, value, group=self.checkpoint_group)
        return gathered

    def _reduce(self, values: list[float], how: dist.ReduceOp.RedOpType) -> list[float]:
        tensor = torch.tensor(values, dtype=torch.float64, device=self.device)
        dist.all_reduce(tensor, how)
        return tensor.tolist()


@contextmanager
def join_world(*, threads: int, timeout: float) -> Iterator[World]:
    """Join the ranks that torchrun started; `threads` 0 shares out the machine's cores."""
    local_world_size = int(os.environ["LOCAL_WORLD_SIZE"])
    torch.set_num_threads(threads or max(1, (os.cpu_count() or 1) // local_world_size))
    torch.use_deterministic_algorithms(True, warn_only=True)
    if torch.cuda.is_available():
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(device)
        # cuBLAS is deterministic only with a workspace of fixed size.
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        backend = "cpu:gloo,cuda:nccl"
    else:
        device, backend = torch.device("cpu"), "gloo"
    limit = timedelta(seconds=timeout)
    dist.init_process_group(backend, timeout=limit)
    try:
        yield World(
            rank=dist.get_rank(),
            size=dist.get_world_size(),
            device=device,
            mesh=init_device_mesh(device.type, (dist.get_world_size(),), mesh_dim_names=("shard",)),
            checkpoint_group=dist.new_group(backend="gloo", timeout=limit),
        )
    finally:
        dist.destroy_process_group()


def seed_everything(seed: int, stream: int) -> None:
    """Seed every global generator; different streams of one seed have nothing in common."""
    words = np.random.SeedSequence([seed, stream]).generate_state(3, dtype=np.uint64)
    random.seed(int(words[0]))
    np.random.seed(int(words[1]) % 2**32)
    torch.manual_seed(int(words[2]) % 2**63)
