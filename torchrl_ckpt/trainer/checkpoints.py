"""The trainer's side of a checkpoint: it decides that one is due, writes its part, commits."""

from __future__ import annotations

import importlib.metadata
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from torchrl_ckpt.checkpoint.commit import commit, request, wait_for_parts
from torchrl_ckpt.checkpoint.layout import STATE, TENSORS, TRAINER, Layout
from torchrl_ckpt.checkpoint.part import finish_part, open_part
from torchrl_ckpt.checkpoint.policy import is_due
from torchrl_ckpt.checkpoint.retention import prune
from torchrl_ckpt.checkpoint.space import check_space
from torchrl_ckpt.contracts import CheckpointBackend, FileRecord, Json
from torchrl_ckpt.durable import read_json, record_json
from torchrl_ckpt.errors import CheckpointFailed, CheckpointMismatch, UserError
from torchrl_ckpt.observe.progress import ProgressLog
from torchrl_ckpt.recipe.schema import Checkpointing
from torchrl_ckpt.trainer.retention import retention
from torchrl_ckpt.trainer.rng import rng_state, set_rng_state
from torchrl_ckpt.trainer.state import TrainingState
from torchrl_ckpt.trainer.world import World, seed_everything

COMPONENT = TRAINER


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
        metrics: Path,
        progress: ProgressLog,
        seed: int,
    ) -> None:
        self._config = config
        self._layout = layout
        self._backend = backend
        self._world = world
        self._parts = parts
        self._about = about
        self._metrics = metrics
        self._progress = progress
        self._seed = seed

    def is_due(self, step: int, *, last: bool) -> bool:
        return is_due(step, interval=self._config.interval, last=last)

    def request(self, step: int, state: TrainingState) -> bool:
        """Ask the other processes for their parts; False where no checkpoint can be begun.

        This comes before the policy of `step` is published: no process can then have gone beyond
        what belongs to this checkpoint when it sees the request.
        """
        with self._failures(step) as outcome:
            if self._world.leads:
                check_space(self._layout.root, state.num_bytes())
                # No rank makes a directory later on: it could fail where others wait for it.
                open_part(request(self._layout, step, self._parts), COMPONENT)
        return outcome.good

    def save(self, step: int, state: TrainingState) -> dict[str, float]:
        """Write this process's part and commit; returns timings in seconds, none if it failed."""
        began = time.perf_counter()
        with self._progress.task(f"checkpoint step_{step}"):
            records: list[FileRecord] = []
            with self._failures(step) as outcome:
                records = self._write(self._layout.partial(step) / COMPONENT, state)
            written = time.perf_counter()
            if outcome.good:
                with self._failures(step) as outcome:
                    self._commit(step, records, state)
        if not outcome.good:
            return {}
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
        self._backend.load(tensors, directory / TENSORS, self._world.checkpoint_group)
        state.restore(tensors, read_json(directory / STATE))
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
        """Write this rank's files and say what was written, once it is durable."""
        save = self._backend.save(
            state.tensors(), directory / TENSORS, self._world.checkpoint_group
        )
        plain, rng = state.plain(), rng_state()
        save.wait_staged()
        records = [
            FileRecord(f"{TENSORS}/{record.path}", record.size, record.digest)
            for record in save.wait_written()
        ]
        records.append(record_json(directory, _rng_name(self._world.rank), rng))
        if self._world.leads:
            records.append(record_json(directory, STATE, plain))
        return records

    def _commit(self, step: int, records: list[FileRecord], state: TrainingState) -> None:
        gathered = self._world.gather(records)
        if not self._world.leads:
            return
        partial = self._layout.partial(step)
        finish_part(partial / COMPONENT, [record for share in gathered for record in share])
        files = wait_for_parts(partial, self._parts, self._config.timeout)
        about = {
            **self._about,
            "progress": vars(state.progress),
            "world_size": self._world.size,
            "versions": _versions(),
        }
        commit(self._layout, step, self._parts, files, about)
        self._progress.message(f"checkpoint step_{step} committed")
        prune(self._layout, retention(self._config, self._metrics))

    @contextmanager
    def _failures(self, step: int) -> Iterator[_Outcome]:
        """Make a failure on one rank one of all, say so, and do what `on_failure` says.

        Earlier checkpoints are whole whatever happens: nothing of this one is under their names.
        """
        outcome = _Outcome()
        try:
            yield outcome
        except (OSError, UserError) as error:
            outcome.reason = str(error)
        reasons = [reason for reason in self._world.gather(outcome.reason) if reason is not None]
        if not reasons:
            return
        outcome.reason = reasons[0]
        text = f"checkpoint of step {step} failed: {reasons[0]}"
        if self._world.leads:
            shutil.rmtree(self._layout.partial(step), ignore_errors=True)
        if self._config.on_failure == "stop":
            raise CheckpointFailed(f'{text} (`ckpt.on_failure` is "stop")')
        if self._world.leads:
            self._progress.message(f"{text}. Training goes on", "warning")


@dataclass
class _Outcome:
    """Whether a step towards a checkpoint succeeded on every rank; known after its block."""

    reason: str | None = None

    @property
    def good(self) -> bool:
        return self.reason is None


def _rng_name(rank: int) -> str:
    return f"rng/rank_{rank}.json"


def _versions() -> dict[str, str]:
    return {
        name: importlib.metadata.version(name)
        for name in ("torchrl-ckpt", "torch", "transformers", "torchdata")
    }
