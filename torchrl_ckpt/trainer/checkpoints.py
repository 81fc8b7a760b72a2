"""The trainer's side of a checkpoint: it decides that one is due, writes its part, commits."""

from __future__ import annotations

import importlib.metadata
import logging
import time
from collections.abc import Mapping
from pathlib import Path

import torch.distributed as dist

from torchrl_ckpt.checkpoint.commit import commit, request, wait_for_parts
from torchrl_ckpt.checkpoint.layout import Layout
from torchrl_ckpt.checkpoint.part import finish_part, open_part
from torchrl_ckpt.checkpoint.policy import is_due
from torchrl_ckpt.checkpoint.retention import prune
from torchrl_ckpt.contracts import CheckpointBackend, FileRecord, Json
from torchrl_ckpt.durable import read_json, record_json
from torchrl_ckpt.errors import CheckpointMismatch
from torchrl_ckpt.recipe.schema import Checkpointing
from torchrl_ckpt.trainer.rng import rng_state, set_rng_state
from torchrl_ckpt.trainer.state import TrainingState
from torchrl_ckpt.trainer.world import World, seed_everything

COMPONENT = "trainer"
_TENSORS = "tensors"
_STATE = "state.json"

_log = logging.getLogger(__name__)


class TrainerCheckpoints:
    """Saves and restores `TrainingState`, together with the other processes' parts.

    `parts` names the processes whose state a checkpoint holds; `about` goes into its manifest.
    """

    def __init__(
        self,
        config: Checkpointing,
        layout: Layout,
        backend: CheckpointBackend,
        world: World,
        *,
        parts: tuple[str, ...],
        about: Mapping[str, Json],
        seed: int,
    ) -> None:
        self._config = config
        self._layout = layout
        self._backend = backend
        self._world = world
        self._parts = parts
        self._about = about
        self._seed = seed

    def is_due(self, step: int, *, last: bool) -> bool:
        return is_due(step, interval=self._config.interval, last=last)

    def request(self, step: int) -> None:
        """Ask the other processes for their parts.

        This comes before the policy of `step` is published: no process can then have gone beyond
        what belongs to this checkpoint when it sees the request.
        """
        if self._world.leads:
            request(self._layout, step, self._parts)
        dist.barrier(self._world.checkpoint_group)

    def save(self, step: int, state: TrainingState) -> dict[str, float]:
        """Write this process's part and commit; returns timings in seconds."""
        began = time.perf_counter()
        records = self._write(open_part(self._layout.partial(step), COMPONENT), state)
        written = time.perf_counter()
        gathered: list[list[FileRecord]] = [[] for _ in range(self._world.size)]
        dist.all_gather_object(gathered, records, group=self._world.checkpoint_group)
        if self._world.leads:
            self._commit(step, [record for share in gathered for record in share], state)
        dist.barrier(self._world.checkpoint_group)
        return {
            "checkpoint/write_seconds": written - began,
            "checkpoint/commit_seconds": time.perf_counter() - written,
        }

    def restore(self, state: TrainingState) -> None:
        """Load the step that `resume_step` names; the runner has verified it."""
        step = self._config.resume_step
        assert isinstance(step, int)
        directory = self._layout.step(step) / COMPONENT
        tensors = state.tensors()
        self._backend.load(tensors, directory / _TENSORS, self._world.checkpoint_group)
        state.restore(tensors, read_json(directory / _STATE))
        if state.progress.step != step:
            raise CheckpointMismatch(f"{directory} says it is of step {state.progress.step}")
        rng = directory / _rng_name(self._world.rank)
        if rng.exists():
            set_rng_state(read_json(rng))
        else:
            # More ranks than before: a new rank has no past to go on from.
            seed_everything(self._seed, (step << 16) + self._world.rank + 1)

    def close(self) -> None:
        self._backend.close()

    def _write(self, directory: Path, state: TrainingState) -> list[FileRecord]:
        # The backend first: it is collective, and every rank must find the directory.
        dist.barrier(self._world.checkpoint_group)
        save = self._backend.save(
            state.tensors(), directory / _TENSORS, self._world.checkpoint_group
        )
        plain, rng = state.plain(), rng_state()
        save.wait_staged()
        records = [
            FileRecord(f"{_TENSORS}/{record.path}", record.size, record.digest)
            for record in save.wait_written()
        ]
        records.append(record_json(directory, _rng_name(self._world.rank), rng))
        if self._world.leads:
            records.append(record_json(directory, _STATE, plain))
        return records

    def _commit(self, step: int, records: list[FileRecord], state: TrainingState) -> None:
        partial = self._layout.partial(step)
        finish_part(partial / COMPONENT, records)
        files = wait_for_parts(partial, self._parts, self._config.timeout)
        about = {
            **self._about,
            "progress": vars(state.progress),
            "world_size": self._world.size,
            "versions": _versions(),
        }
        committed = commit(self._layout, step, self._parts, files, about)
        _log.info("committed checkpoint %s", committed)
        protected = {self._config.resume_step} & set(self._layout.steps())
        prune(
            self._layout,
            keep=self._config.keep,
            keep_every=self._config.keep_every,
            protected=[step for step in protected if isinstance(step, int)],
        )


def _rng_name(rank: int) -> str:
    return f"rng/rank_{rank}.json"


def _versions() -> dict[str, str]:
    return {
        name: importlib.metadata.version(name)
        for name in ("torchrl-ckpt", "torch", "transformers", "torchdata")
    }
