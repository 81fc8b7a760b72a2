"""A training job of milliseconds, whose state after each step is known in advance.

What saves it is the real thing: FSDP2 on one gloo rank, AdamW, the trainer's and the orchestrator's
parts, the joint commit, retention. Only the model is small and the gradients are made up.
"""

from __future__ import annotations

import os
import random
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal
from unittest.mock import patch

import torch
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

from torchrl_ckpt.checkpoint.layout import Layout
from torchrl_ckpt.config.ckpt import CheckpointConfig
from torchrl_ckpt.config.orchestrator import OrchestratorConfig
from torchrl_ckpt.config.rl_recipe import RlRecipe
from torchrl_ckpt.config.section import PluginTable
from torchrl_ckpt.config.settings import to_json
from torchrl_ckpt.config.trainer import OptimizerConfig, RlTrainerConfig, SchedulerConfig
from torchrl_ckpt.launcher.start import begin_attempt
from torchrl_ckpt.orchestrator.state import OrchestratorState
from torchrl_ckpt.plugin_api.plugin import Json
from torchrl_ckpt.registry.loading import create
from torchrl_ckpt.run.attempt import Attempt
from torchrl_ckpt.run.directory import RunDirectory
from torchrl_ckpt.run.progress import ProgressLog
from torchrl_ckpt.run.rollout_store import Rollout, RolloutBatch, RolloutStore
from torchrl_ckpt.shuffled_stream import ShuffledStream
from torchrl_ckpt.trainer.checkpointer import COMPONENT, Checkpointer
from torchrl_ckpt.trainer.distributed import World, join_world, seed_everything
from torchrl_ckpt.trainer.optimizer import build_optimizer, build_scheduler
from torchrl_ckpt.trainer.source import TrainBatch
from torchrl_ckpt.trainer.state import Progress, TrainingState, rng_state

SEED = 11
MAX_STEPS = 100
ASYNC_LEVEL = 1
PARTS = (COMPONENT, "orchestrator")

_BATCH_SIZE = 3
_SAMPLES = 50
_PROBLEMS = 40
_COLLECTIVE_TIMEOUT = 60.0
_PART_TIMEOUT = 20.0


@dataclass(frozen=True)
class SaveOptions:
    """How to save: the recipe's `ckpt` table, as far as it matters here."""

    backend: str = "dcp"
    backend_options: Mapping[str, Any] = field(default_factory=dict)
    keep: int | None = 2
    resume_step: int | None = None
    on_failure: Literal["continue", "stop"] = "stop"

    def checkpointing(self) -> CheckpointConfig:
        return CheckpointConfig(
            backend=PluginTable(type=self.backend, **self.backend_options),
            keep=self.keep,
            resume_step=self.resume_step,
            on_failure=self.on_failure,
            timeout=_PART_TIMEOUT,
        )


@contextmanager
def one_rank() -> Iterator[World]:
    """This process as a world of its own, and afterwards as it was."""
    torchrun = {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1"}
    address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}
    threads = torch.get_num_threads()
    with (
        patch.dict(os.environ, {**torchrun, **address}),
        join_world(threads=1, timeout=_COLLECTIVE_TIMEOUT) as world,
    ):
        yield world
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(False)


@contextmanager
def started_again(run: Path, options: SaveOptions) -> Iterator[Attempt]:
    """What the runner does before a run's processes start: from the latest checkpoint, if any."""
    latest = "latest" if Layout(run / "checkpoints").steps() else None
    ckpt = options.checkpointing().model_copy(update={"resume_step": latest})
    with begin_attempt("rl", _recipe(run, ckpt)) as start:
        yield start.attempt


def _recipe(run: Path, ckpt: CheckpointConfig) -> RlRecipe:
    """The recipe of this job, as far as saving and resuming look at it."""
    shared = {"output_dir": run, "max_steps": MAX_STEPS, "seed": SEED, "model": {"type": "none"}}
    scheduler = SchedulerConfig(name="linear", decay_steps=MAX_STEPS)
    return RlRecipe(
        trainer=RlTrainerConfig(**shared, ckpt=ckpt, scheduler=scheduler),
        orchestrator=OrchestratorConfig(**shared, ckpt=ckpt, environment={"type": "none"}),
    )


class Rehearsal:
    """Trainer and orchestrator of a job in `run`, in one process.

    After step n both states are a function of n alone, however often they were saved and restored
    on the way.
    """

    def __init__(self, run: Path, world: World) -> None:
        self.run = RunDirectory(run, attempt=1)
        self.run.logs.mkdir(parents=True, exist_ok=True)
        self.layout = Layout(run / "checkpoints")
        self._world = world
        seed_everything(SEED, stream=0)
        model = torch.nn.Sequential(
            torch.nn.Embedding(30, 24),
            torch.nn.Linear(24, 48),
            # Of more than a buffer of the writer's, so that a write can fail within the tensor.
            torch.nn.Linear(48, 6000),
        )
        fully_shard(model, mesh=world.mesh)
        self._optimizer = build_optimizer(model, OptimizerConfig())
        self._scheduler = build_scheduler(
            self._optimizer, SchedulerConfig(name="linear", warmup_steps=2), MAX_STEPS
        )
        self._data = _Data()
        self.trainer = TrainingState(
            model, self._optimizer, self._scheduler, self._data, Progress()
        )
        self._problems = ShuffledStream(_PROBLEMS, SEED)
        self.orchestrator = OrchestratorState(self._problems, async_level=ASYNC_LEVEL)
        self._rollouts = RolloutStore(self.run.rollouts)
        self._rollouts.clear()

    @property
    def step(self) -> int:
        return self.trainer.progress.step

    def train_to(self, step: int) -> None:
        """Go through the steps up to and with `step`."""
        while self.step < step:
            self._update(self.step + 1)
        while self.orchestrator.progress.step < step + ASYNC_LEVEL:
            self._generate(self.orchestrator.progress.step + 1)

    def checkpoints(self, options: SaveOptions) -> Checkpointer:
        config = options.checkpointing()
        attempt = Attempt(
            output_dir=self.run.root,
            number=self.run.attempt,
            max_steps=MAX_STEPS,
            resume_step=options.resume_step,
            ckpt=config,
        )
        backend = create("checkpoint_backends", config.backend)
        return Checkpointer(
            attempt,
            backend,
            self._world,
            parts=PARTS,
            metadata={"command": "rl", "recipe": to_json(_recipe(self.run.root, config))},
            progress=ProgressLog(self.run.progress, COMPONENT),
            seed=SEED,
        )

    def save(self, checkpoints: Checkpointer) -> None:
        """Checkpoint this step: the calls of both loops, in their order."""
        if checkpoints.request(self.step):
            self.orchestrator.answer_requests(self.layout, self._rollouts)
            checkpoints.save(self.step, self.trainer)
            checkpoints.wait_staged()

    def restore(self, step: int, options: SaveOptions) -> None:
        """Load a checkpoint into both."""
        checkpoints = self.checkpoints(replace(options, resume_step=step))
        checkpoints.restore(self.trainer)
        checkpoints.close()
        for batch in self.orchestrator.restore(self.layout, step):
            self._rollouts.write(batch)

    def snapshot(self) -> Snapshot:
        tensors = self.trainer.tensors().items()
        return Snapshot(
            tensors={name: _whole(tensor).clone() for name, tensor in tensors},
            plain={
                "trainer": self.trainer.snapshot()[1],
                "rng": rng_state(),
                "orchestrator": vars(self.orchestrator.progress).copy(),
                "problems": self._problems.state_dict(),
                "carried": self._rollouts.read(self.step + ASYNC_LEVEL, attempt=1),
            },
        )

    def _update(self, step: int) -> None:
        generator = torch.Generator().manual_seed(step)
        for parameter in self.trainer.model.parameters():
            parameter.grad = torch.zeros_like(parameter)
            gradient = parameter.grad
            assert isinstance(gradient, DTensor)
            local = gradient.to_local()
            local.copy_(torch.randn(local.shape, generator=generator))
        self._optimizer.step()
        self._scheduler.step()
        self._data.stream.take(_BATCH_SIZE)
        progress = self.trainer.progress
        progress.step = step
        progress.samples += _BATCH_SIZE
        progress.tokens += _BATCH_SIZE * step
        seed_everything(SEED, stream=step)

    def _generate(self, step: int) -> None:
        drawn = random.Random(step)
        policy_version = max(0, step - 1 - ASYNC_LEVEL)
        rollouts = [
            Rollout(
                problem=f"problem {index}",
                prompt=[1, 2, index % 30],
                completion=[3, drawn.randrange(30)],
                logprobs=[-0.5, -1.5],
                reward=drawn.choice([0.0, 1.0]),
                advantage=0.5,
                policy_version=policy_version,
                load="a load",
            )
            for index in self._problems.take(2)
        ]
        progress = self.orchestrator.progress
        progress.step = step
        progress.problems += 2
        progress.samples += 2
        progress.tokens += 4
        self._rollouts.write(RolloutBatch(step, 1, policy_version, 1.0, rollouts, {"reward": 0.5}))


@dataclass(frozen=True)
class Snapshot:
    """Everything that a checkpoint must bring back."""

    tensors: Mapping[str, torch.Tensor]
    plain: Json

    def differences(self, other: Snapshot) -> list[str]:
        """The names of what is not equal to the bit."""
        names = sorted(self.tensors.keys() ^ other.tensors.keys())
        names += [
            name
            for name, tensor in self.tensors.items()
            if name in other.tensors and not torch.equal(tensor, other.tensors[name])
        ]
        return names + [name for name in self.plain if self.plain[name] != other.plain[name]]


class _Data:
    """A data set whose samples nobody looks at."""

    provides: frozenset[str] = frozenset()

    def __init__(self) -> None:
        self.stream = ShuffledStream(_SAMPLES, SEED)

    def batch(self, step: int) -> TrainBatch:
        raise NotImplementedError("a rehearsal makes its gradients up")

    def state_dict(self) -> Json:
        return self.stream.state_dict()

    def load_state_dict(self, state: Json) -> None:
        self.stream.load_state_dict(state)


def _whole(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
