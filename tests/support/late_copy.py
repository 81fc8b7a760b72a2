"""The backend `async_dcp` with a delay before each copy of the state."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch.distributed import ProcessGroup
from torchrl_ckpt_dcp.async_dcp_backend import AsyncDcpBackend, AsyncDcpConfig

from torchrl_ckpt.plugin_api.checkpoint_backends import Save


class LateCopyConfig(AsyncDcpConfig):
    """Options of `LateCopyBackend`."""

    delay: float
    """Seconds between the beginning of a save and the copy."""


class LateCopyBackend(AsyncDcpBackend):
    """Copies the state late, so that an update that does not wait for the copy changes it."""

    Config = LateCopyConfig
    config: LateCopyConfig

    def save(self, state: Mapping[str, torch.Tensor], directory: Path, group: ProcessGroup) -> Save:
        return super().save(_LateState(state, self.config.delay), directory, group)


@dataclass(frozen=True)
class _LateState(Mapping[str, torch.Tensor]):
    """Blocks the thread that begins to read it."""

    state: Mapping[str, torch.Tensor]
    delay: float

    def __iter__(self) -> Iterator[str]:
        time.sleep(self.delay)
        return iter(self.state)

    def __getitem__(self, name: str) -> torch.Tensor:
        return self.state[name]

    def __len__(self) -> int:
        return len(self.state)
