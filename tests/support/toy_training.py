"""A training run of milliseconds whose state after each step is known in advance.

It is saved by the real code: FSDP2 on one gloo rank, AdamW, the parts of trainer and orchestrator,
the joint commit, retention. Only the model is small and the gradients are random numbers.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from tests.support.rollouts import ATTEMPT_ID
from torchrl_ckpt.checkpoint.layout import TRAINER, Layout
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
from torchrl_ckpt.run.rollout_store import METADATA, TENSORS, BatchMetadata, Rollout, RolloutStore
from torchrl_ckpt.shuffled_stream import ShuffledStream
from torchrl_ckpt.trainer.checkpointer import Checkpointer
from torchrl_ckpt.trainer.distributed import World, seed_everything
from torchrl_ckpt.trainer.optimizer import build_optimizer, build_scheduler
from torchrl_ckpt.trainer.source import TrainBatch
from torchrl_ckpt.trainer.state import Progress, TrainingState, rng_state

SEED = 11
MAX_STEPS = 100
ASYNC_LEVEL = 1
PARTS = (TRAINER, "orchestrator")

_BATCH_SIZE = 3
_SAMPLES = 50
_PROBLEMS = 40
_PART_SECONDS = 20.0


@dataclass(frozen=True)
class SaveOptions:
    """The options of `ckpt` that matter here, in a form that JSON can carry."""

    backend: str = "dcp"
    backend_options: Mapping[str, Any] = field(default_factory=dict)
    keep: int | None = 2
    resume_step: int | None = None
    on_failure: Literal["continue", "stop"] = "stop"
    ranks: int = 1

    def config(self) -> CheckpointConfig:
        return CheckpointConfig(
            backend=PluginTable(type=self.backend, **self.backend_options),
            keep=self.keep,
            resume_step=self.resume_step,
            on_failure=self.on_failure,
            timeout=_PART_SECONDS,
        )


@contextmanager
def resumed_attempt(run: Path, options: SaveOptions) -> Iterator[Attempt]:
    """Begin another attempt of `run` as the launcher does, from the latest checkpoint if any."""
    latest = "latest" if Layout(run / "checkpoints").steps() else None
    ckpt = options.config().model_copy(update={"resume_step": latest})
    with begin_attempt("rl", _recipe(run, ckpt)) as start:
        yield start.attempt


def _recipe(run: Path, ckpt: CheckpointConfig) -> RlRecipe:
    """The part of a recipe that saving and resuming read."""
    shared = {"output_dir": run, "max_steps": MAX_STEPS, "seed": SEED, "model": {"type": "none"}}
    scheduler = SchedulerConfig(name="linear", decay_steps=MAX_STEPS)
    return RlRecipe(
        trainer=RlTrainerConfig(**shared, ckpt=ckpt, scheduler=scheduler),
        orchestrator=OrchestratorConfig(**shared, ckpt=ckpt, environment={"type": "none"}),
    )


class ToyTraining:
    """One rank of a run's trainer and, in rank 0's process, the orchestrator.

    After step n both states depend on n alone, however often they were saved and restored before.
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
            # Larger than the writer's buffer, so that a write can fail in the middle of the tensor.
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
        if world.is_rank_zero:
            self._rollouts.clear()

    @property
    def step(self) -> int:
        return self.trainer.progress.step

    def train_to(self, step: int) -> None:
        """Train up to and including `step`."""
        while self.step < step:
            self._update(self.step + 1)
        while self._world.is_rank_zero and self.orchestrator.generated.step < step + ASYNC_LEVEL:
            self._generate(self.orchestrator.generated.step + 1)

    def checkpointer(self, options: SaveOptions) -> Checkpointer:
        config = options.config()
        attempt = Attempt(
            output_dir=self.run.root,
            id=ATTEMPT_ID,
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
            progress=ProgressLog(self.run.progress, TRAINER),
            seed=SEED,
        )

    def save(self, checkpointer: Checkpointer) -> None:
        """Checkpoint the current step by the calls of both loops, in their order."""
        if checkpointer.request(self.step, last=True):
            if self._world.is_rank_zero:
                self.orchestrator.answer_requests(self.layout, self._rollouts)
            checkpointer.save(self.step, self.trainer)
            checkpointer.maybe_wait_for_staging()

    def restore(self, step: int, options: SaveOptions) -> None:
        """Load the checkpoint of `step` into trainer and orchestrator."""
        checkpointer = self.checkpointer(replace(options, resume_step=step))
        checkpointer.load(self.trainer)
        checkpointer.close()
        for directory in self.orchestrator.restore(self.layout, step):
            self._rollouts.restore(directory, attempt_id=ATTEMPT_ID)

    def snapshot(self) -> Snapshot:
        """Copy everything that a checkpoint of the current step must hold."""
        tensors = self.trainer.tensors().items()
        return Snapshot(
            tensors={name: _full(tensor).clone() for name, tensor in tensors},
            plain={
                "trainer": self.trainer.snapshot()[1],
                "rng": rng_state(),
                "orchestrator": vars(self.orchestrator.generated).copy(),
                "problems": self._problems.state_dict(),
                "carried": [
                    (self._rollouts.path(self.step + ASYNC_LEVEL) / name).read_bytes()
                    for name in (METADATA, TENSORS)
                ],
            },
        )

    def _update(self, step: int) -> None:
        generator = torch.Generator().manual_seed(step)
        for parameter in self.trainer.model.parameters():
            parameter.grad = torch.zeros_like(parameter)
            gradient = parameter.grad
            assert isinstance(gradient, DTensor)
            whole = torch.randn(gradient.shape, generator=generator)
            gradient.copy_(
                distribute_tensor(
                    whole, gradient.device_mesh, gradient.placements, src_data_rank=None
                )
            )
        self._optimizer.step()
        self._scheduler.step()
        self._data.stream.take(_BATCH_SIZE)
        progress = self.trainer.progress
        progress.step = step
        progress.samples += _BATCH_SIZE
        progress.tokens += _BATCH_SIZE * step
        seed_everything(SEED, stream=step)

    def _generate(self, step: int) -> None:
        generator = random.Random(step)
        policy_version = max(0, step - 1 - ASYNC_LEVEL)
        rollouts = [
            Rollout(
                problem=f"problem {index}",
                prompt=[1, 2, index % 30],
                completion=[3, generator.randrange(30)],
                logprobs=[-0.5, -1.5],
                is_truncated=False,
                reward=generator.choice([0.0, 1.0]),
                metrics={},
                advantage=0.5,
                policy_version=policy_version,
                weights_id="verified weights",
            )
            for index in self._problems.take(2)
        ]
        self.orchestrator.count(step, num_problems=2, num_samples=2, num_tokens=4)
        metadata = BatchMetadata(
            step,
            ATTEMPT_ID,
            policy_version,
            temperature=1.0,
            engine_dtype="float32",
            truncation=0.0,
            state=self.orchestrator.to_json(),
            metrics={"reward": 0.5},
        )
        self._rollouts.write(metadata, rollouts)


@dataclass(frozen=True)
class Snapshot:
    """Everything that a checkpoint must restore: tensors by name, and the rest as JSON."""

    tensors: Mapping[str, torch.Tensor]
    plain: Json

    def differences(self, other: Snapshot) -> list[str]:
        """Return the names of the values that are not equal to the bit."""
        names = sorted(self.tensors.keys() ^ other.tensors.keys())
        names += [
            name
            for name, tensor in self.tensors.items()
            if name in other.tensors and not torch.equal(tensor, other.tensors[name])
        ]
        return names + [name for name in self.plain if self.plain[name] != other.plain[name]]


class _Data:
    """A data set of which only the position matters."""

    provides: frozenset[str] = frozenset()

    def __init__(self) -> None:
        self.stream = ShuffledStream(_SAMPLES, SEED)

    def batch(self, step: int) -> TrainBatch:
        raise NotImplementedError("`ToyTraining` draws its gradients at random")

    def state_dict(self) -> Json:
        return self.stream.state_dict()

    def load_state_dict(self, state: Json) -> None:
        self.stream.load_state_dict(state)


def _full(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
