"""No update changes a state that a background save has still to copy."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch.distributed import ProcessGroup
from torchrl_ckpt_dcp.async_dcp_backend import AsyncDcpBackend, AsyncDcpConfig

from tests.support.commands import digests
from tests.support.one_rank_world import one_rank_world
from tests.support.tiny_trainer import MAX_STEPS, tiny_trainer
from torchrl_ckpt.config.ckpt import CheckpointConfig
from torchrl_ckpt.plugin_api.checkpoint_backends import CheckpointBackend, Save

DELAY_SECONDS = 0.3  # Many times what a step takes.


@dataclass(frozen=True)
class LateState(Mapping[str, torch.Tensor]):
    """A state that makes the thread which begins to read it wait."""

    state: Mapping[str, torch.Tensor]

    def __iter__(self) -> Iterator[str]:
        time.sleep(DELAY_SECONDS)
        return iter(self.state)

    def __getitem__(self, name: str) -> torch.Tensor:
        return self.state[name]

    def __len__(self) -> int:
        return len(self.state)


class LateCopyBackend(AsyncDcpBackend):
    """`async_dcp` whose staging thread begins to copy late."""

    def save(self, state: Mapping[str, torch.Tensor], directory: Path, group: ProcessGroup) -> Save:
        return super().save(LateState(state), directory, group)


def test_an_update_waits_for_the_copy_of_the_state(tmp_path: Path) -> None:
    def train(run: str, backend: CheckpointBackend | None) -> Path:
        ckpt = CheckpointConfig(interval=1)
        trainer = tiny_trainer(tmp_path / run, world, ckpt=ckpt, backend=backend)
        trainer.run()
        return trainer.layout.root

    with one_rank_world() as world:
        prompt = train("prompt", backend=None)
        late = train("late", LateCopyBackend(AsyncDcpConfig()))
    for step in range(1, MAX_STEPS + 1):
        assert digests(late / f"step_{step}") == digests(prompt / f"step_{step}")
