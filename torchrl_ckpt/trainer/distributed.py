"""The ranks of a training job: how they join, their collectives, devices and random seeds."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta

import numpy as np
import psutil
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from torchrl_ckpt.config.ckpt import CheckpointConfig
from torchrl_ckpt.config.trainer import RlTrainerConfig, TrainerConfig
from torchrl_ckpt.plugin_api.collectives import gather_json
from torchrl_ckpt.plugin_api.errors import CheckpointFailed
from torchrl_ckpt.plugin_api.plugin import Json

RENDEZVOUS_VARIABLE = "TORCHRL_CKPT_RENDEZVOUS"
"""The environment variable with the file through which the ranks of one machine find each other,
in a directory that only this user may enter. Unset for a rank that is alone."""

MARGIN_SECONDS = 600.0
"""By how much a collective's limit exceeds the wait of the one rank that the others wait for: that
rank has work to do afterwards, such as a commit and the deletion of old checkpoints."""


class RanksDisconnected(CheckpointFailed):
    """A collective of the checkpoint group failed, so the ranks can no longer agree on a save."""


@dataclass(frozen=True)
class CollectiveLimits:
    """How long a collective may take before the rank gives up, for each process group."""

    training_seconds: float
    checkpoint_seconds: float


def collective_limits(config: TrainerConfig, ckpt: CheckpointConfig | None) -> CollectiveLimits:
    """Derive the limits from the options that say how long one rank may keep the others waiting.

    While rank 0 waits for other processes' parts of a checkpoint (`ckpt.timeout`), the other ranks
    wait for it in a collective of the checkpoint group. A rank may wait for rollouts
    (`rollout_timeout`), or rank 0 for room on the disk (`publish_timeout`), while another one is
    in a collective of the training group.
    """
    training = max(config.collective_timeout, config.publish_timeout + MARGIN_SECONDS)
    checkpoint = config.collective_timeout
    if isinstance(config, RlTrainerConfig):
        training = max(training, config.rollout_timeout + MARGIN_SECONDS)
    if ckpt is not None:
        checkpoint = max(checkpoint, ckpt.timeout + MARGIN_SECONDS)
    return CollectiveLimits(training_seconds=training, checkpoint_seconds=checkpoint)


@dataclass(frozen=True)
class World:
    """This rank among the others.

    `checkpoint_group` is a gloo group for checkpoints alone: its collectives run on another thread
    beside those of the training and must not mix with them.
    """

    rank: int
    size: int
    device: torch.device
    mesh: DeviceMesh
    checkpoint_group: dist.ProcessGroup

    @property
    def is_rank_zero(self) -> bool:
        """Whether this rank does the work that is done once for all ranks."""
        return self.rank == 0

    def sum(self, values: list[float]) -> list[float]:
        """Sum each value over all ranks, in float64."""
        return self._reduce(values, dist.ReduceOp.SUM)

    def max(self, value: float) -> float:
        """Return the largest value of all ranks."""
        return self._reduce([value], dist.ReduceOp.MAX)[0]

    def gather(self, value: Json) -> list[Json]:
        """Return every rank's `value`, by rank, over the checkpoint group.

        Raises `RanksDisconnected` where a rank has died or does not join within the limit.
        """
        try:
            return gather_json(value, self.checkpoint_group)
        except RuntimeError as error:
            raise RanksDisconnected(
                f"the trainer's ranks lost each other during a checkpoint ({error}). One of them "
                "died or is stuck, and its log may say why; if it was only slow, raise "
                "`collective_timeout` of the trainer"
            ) from error

    def _reduce(self, values: list[float], operation: dist.ReduceOp.RedOpType) -> list[float]:
        tensor = torch.tensor(values, dtype=torch.float64, device=self.device)
        dist.all_reduce(tensor, operation)
        return tensor.tolist()


@contextmanager
def join_world(*, threads: int, limits: CollectiveLimits) -> Iterator[World]:
    """Join the ranks that torchrun has started, or be the only one; leave when the block ends.

    `threads` are the CPU threads of this rank; 0 divides the machine's cores among its ranks. All
    ranks are on this machine: no port is opened but on its loopback interface.
    """
    rank, size, store = _place()
    torch.set_num_threads(threads or max(1, (os.cpu_count() or 1) // size))
    torch.use_deterministic_algorithms(True, warn_only=True)
    # Whatever the environment says: it may be made for jobs of several machines.
    os.environ["GLOO_SOCKET_IFNAME"] = os.environ["NCCL_SOCKET_IFNAME"] = _loopback_interface()
    if torch.cuda.is_available():
        device = torch.device("cuda", rank)
        torch.cuda.set_device(device)
        # cuBLAS is deterministic only with a workspace of fixed size.
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        backend = "cpu:gloo,cuda:nccl"
    else:
        device, backend = torch.device("cpu"), "gloo"
    dist.init_process_group(
        backend,
        timeout=timedelta(seconds=limits.training_seconds),
        store=store,
        rank=rank,
        world_size=size,
    )
    try:
        yield World(
            rank=rank,
            size=size,
            device=device,
            mesh=init_device_mesh(device.type, (size,), mesh_dim_names=("shard",)),
            checkpoint_group=dist.new_group(
                backend="gloo", timeout=timedelta(seconds=limits.checkpoint_seconds)
            ),
        )
    finally:
        dist.destroy_process_group()


def _place() -> tuple[int, int, dist.Store]:
    """This rank, the number of ranks, and the store through which they find each other.

    torch's usual store is a server that listens on all interfaces and lets anybody write.
    """
    rendezvous = os.environ.get(RENDEZVOUS_VARIABLE)
    if rendezvous is None:
        return 0, 1, dist.HashStore()
    rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    return rank, size, dist.FileStore(rendezvous, size)


def _loopback_interface() -> str:
    """The name of the network interface that only this machine reaches."""
    for name, addresses in psutil.net_if_addrs().items():
        if any(address.address == "127.0.0.1" for address in addresses):
            return name
    return "lo"


def seed_everything(seed: int, stream: int) -> None:
    """Seed every global generator; different streams of one seed are independent."""
    words = np.random.SeedSequence([seed, stream]).generate_state(3, dtype=np.uint64)
    random.seed(int(words[0]))
    np.random.seed(int(words[1]) % 2**32)
    torch.manual_seed(int(words[2]) % 2**63)
