"""A trainer of a tiny model on ten samples, built as `trainer.main` does it, in this process."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torchrl_ckpt_losses.cross_entropy import CrossEntropy
from torchrl_ckpt_transformers.model import TransformersModel

from tests.support.tiny_model import tiny_model
from torchrl_ckpt.checkpoint.layout import TRAINER, Layout
from torchrl_ckpt.config.ckpt import CheckpointConfig
from torchrl_ckpt.config.trainer import OptimizerConfig, PackingConfig, SchedulerConfig
from torchrl_ckpt.plugin_api.checkpoint_backends import CheckpointBackend
from torchrl_ckpt.plugin_api.losses import Loss
from torchrl_ckpt.registry.loading import create
from torchrl_ckpt.run.attempt import Attempt
from torchrl_ckpt.run.directory import RunDirectory
from torchrl_ckpt.run.metrics import MetricsLog, read
from torchrl_ckpt.run.patience import Patience
from torchrl_ckpt.run.progress import ProgressLog, ProgressMessage, ProgressTail
from torchrl_ckpt.run.weight_store import WeightStore
from torchrl_ckpt.trainer.checkpointer import Checkpointer, NullCheckpointer
from torchrl_ckpt.trainer.distributed import World, seed_everything
from torchrl_ckpt.trainer.loop import Loop, LoopLogs, LoopOptions
from torchrl_ckpt.trainer.optimizer import build_optimizer, build_scheduler
from torchrl_ckpt.trainer.packing import TrainSample
from torchrl_ckpt.trainer.publisher import CanaryOptions, Publisher
from torchrl_ckpt.trainer.sft_source import SftSource
from torchrl_ckpt.trainer.state import Progress, TrainingState
from torchrl_ckpt.trainer.train_step import TrainStep
from torchrl_ckpt.trainer.update_check import UpdateLimits

SMALLEST = {
    "num_hidden_layers": 1,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "head_dim": 8,
}

MAX_STEPS = 4
LIMITS = UpdateLimits(max_norm=1.0)


class TenSamples:
    """Ten samples of four tokens, each with another first token."""

    def __len__(self) -> int:
        return 10

    def __getitem__(self, index: int) -> TrainSample:
        return TrainSample([index + 2, 3, 4, 5], [False, True, True, True])


@dataclass(frozen=True)
class TinyTrainer:
    """A trainer and what it writes: `attempt.run` has the paths."""

    attempt: Attempt
    world: World
    state: TrainingState
    train_step: TrainStep
    publisher: Publisher
    checkpointer: Checkpointer | NullCheckpointer
    layout: Layout

    def run(
        self,
        *,
        publish_policies: bool = False,
        export_weights: bool = True,
        stop_requested: Callable[[], bool] = lambda: False,
    ) -> None:
        """Resume if the attempt says so, and train."""
        options = LoopOptions(
            self.attempt.max_steps, publish_policies, export_weights, stop_requested
        )
        logs = LoopLogs(
            MetricsLog(self.attempt.run.metrics), ProgressLog(self.attempt.run.progress, TRAINER)
        )
        with self.checkpointer as checkpointer:
            checkpointer.load(self.state)
            checkpointer.prepare(self.state)
            Loop(
                self.state,
                self.train_step,
                self.publisher,
                checkpointer,
                logs,
                self.world,
                options,
            ).run()

    def rows(self, component: str = TRAINER) -> list[dict[str, Any]]:
        """The rows of metrics that a component has written."""
        return [row for row in read(self.attempt.run.metrics) if row["component"] == component]

    def messages(self) -> list[ProgressMessage]:
        """The messages to the user so far."""
        events = ProgressTail(self.attempt.run.progress).read()
        return [event for event in events if isinstance(event, ProgressMessage)]

    def weights(self) -> WeightStore:
        return WeightStore(self.attempt.run.weights)


def patience(output_dir: Path, seconds: float = 0.1) -> Patience:
    """How long a publisher in `output_dir` tries to write a policy."""
    progress = ProgressLog(RunDirectory(output_dir, 1).progress, TRAINER)
    return Patience(seconds, "trainer.publish_timeout", progress)


def tiny_trainer(
    output_dir: Path,
    world: World,
    *,
    ckpt: CheckpointConfig | None = None,
    backend: CheckpointBackend | None = None,
    plugin: TransformersModel | None = None,
    resume_step: int | None = None,
    parts: tuple[str, ...] = (TRAINER,),
    loss: Loss | None = None,
    limits: UpdateLimits = LIMITS,
    max_steps: int = MAX_STEPS,
) -> TinyTrainer:
    """Build a trainer of `MAX_STEPS` steps. `backend` replaces the one that `ckpt` names."""
    attempt = Attempt(
        output_dir=output_dir, number=1, max_steps=max_steps, resume_step=resume_step, ckpt=ckpt
    )
    attempt.run.logs.mkdir(parents=True, exist_ok=True)
    seed_everything(0, stream=0)
    plugin = plugin or tiny_model(**SMALLEST)
    model = plugin.build(pretrained=False)
    plugin.parallelize(model, world.mesh, param_dtype=torch.float32)
    optimizer = build_optimizer(model, OptimizerConfig(lr=1e-2))
    scheduler = build_scheduler(optimizer, SchedulerConfig(), max_steps)
    source = SftSource(TenSamples(), batch_size=4, num_workers=0, seed=0, world=world)
    checkpointer: Checkpointer | NullCheckpointer = NullCheckpointer()
    if ckpt is not None:
        checkpointer = Checkpointer(
            attempt,
            backend or create("checkpoint_backends", ckpt.backend),
            world,
            parts=parts,
            metadata={"command": "sft", "recipe": {}},
            progress=ProgressLog(attempt.run.progress, TRAINER),
            seed=0,
        )
    return TinyTrainer(
        attempt,
        world,
        TrainingState(model, optimizer, scheduler, source, Progress()),
        TrainStep(
            model,
            loss or CrossEntropy(),
            optimizer,
            scheduler,
            PackingConfig(length=8, rows=2),
            limits,
            world,
        ),
        Publisher(
            plugin,
            model,
            WeightStore(attempt.run.weights),
            attempt_id=attempt.id,
            world=world,
            patience=patience(output_dir),
            canary=CanaryOptions(seed=0, longest=8),
        ),
        checkpointer,
        Layout.of_run(output_dir, ckpt or CheckpointConfig()),
    )
