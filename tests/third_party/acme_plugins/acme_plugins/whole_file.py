"""The checkpoint backend `acme_whole_file`: all tensors, unsharded, in one safetensors file.

It gathers every tensor on every rank, so the model must fit twice into the memory of one rank.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path

import torch
import torch.distributed as dist
from safetensors import safe_open
from safetensors.torch import load_file, save
from torch.distributed import ProcessGroup
from torch.distributed.tensor import DTensor, distribute_tensor

from torchrl_ckpt.plugin_api.checkpoint_backends import Advance, TensorDescription, Written
from torchrl_ckpt.plugin_api.durable_files import recorded_file
from torchrl_ckpt.plugin_api.errors import CheckpointMismatch

FILE = "acme.safetensors"


class WholeFileBackend:
    """Writes one file with unsharded tensors, on rank 0. Any number of ranks can load it."""

    plugin_api = 1
    file_format = "acme_safetensors"
    in_background = False

    def prepare(self, state: Mapping[str, torch.Tensor], group: ProcessGroup) -> None:
        pass

    def save(
        self, state: Mapping[str, torch.Tensor], directory: Path, group: ProcessGroup
    ) -> WholeFileSave:
        is_writer = dist.get_rank(group) == 0
        copies = {}
        for name, tensor in state.items():
            whole = _unsharded(tensor)  # collective: on every rank, in the same order
            if is_writer:
                copies[name] = whole.cpu().clone(memory_format=torch.contiguous_format)
        return WholeFileSave(copies, directory)

    def load(self, state: Mapping[str, torch.Tensor], directory: Path, group: ProcessGroup) -> None:
        with safe_open(directory / FILE, framework="pt") as file:
            stored = {name: file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118
            for name, tensor in state.items():
                if stored.get(name) != list(tensor.shape):
                    raise CheckpointMismatch(
                        f"{directory / FILE}: {name} is {stored.get(name, 'missing')}, and "
                        f"{list(tensor.shape)} is needed. Resume with the same `model`."
                    )
            for name, tensor in state.items():
                _fill(tensor, file.get_tensor(name))

    def describe(self, directory: Path) -> list[TensorDescription]:
        return [
            TensorDescription(name, tuple(tensor.shape), str(tensor.dtype).removeprefix("torch."))
            for name, tensor in sorted(load_file(directory / FILE).items())
        ]

    def read(self, directory: Path, names: Collection[str]) -> dict[str, torch.Tensor]:
        with safe_open(directory / FILE, framework="pt") as file:
            return {name: file.get_tensor(name) for name in names}

    def close(self) -> None:
        pass


class WholeFileSave:
    """A save in progress: the tensors are copied, and `wait_written` writes them, on rank 0."""

    def __init__(self, copies: Mapping[str, torch.Tensor], directory: Path) -> None:
        self._copies = copies
        self._directory = directory

    def wait_staged(self) -> None:
        pass

    def wait_written(self, advance: Advance = lambda _: None) -> Written:
        if not self._copies:
            return Written([])
        with recorded_file(self._directory, FILE) as (stream, records):
            advance(stream.write(save(dict(self._copies))))
        return Written(records)


def _unsharded(tensor: torch.Tensor) -> torch.Tensor:
    detached = tensor.detach()
    return detached.full_tensor() if isinstance(detached, DTensor) else detached


@torch.no_grad()
def _fill(tensor: torch.Tensor, whole: torch.Tensor) -> None:
    """Copy `whole`, or this rank's shard of it, into `tensor`."""
    if isinstance(tensor, DTensor):
        # Every rank has read the same file, so no rank has to send anything.
        whole = whole.to(tensor.device)
        whole = distribute_tensor(whole, tensor.device_mesh, tensor.placements, src_data_rank=None)
    tensor.copy_(whole)
