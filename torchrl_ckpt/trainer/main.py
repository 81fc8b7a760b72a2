"""A rank of the trainer: builds what the recipe names, resumes, trains, and leaves."""

from __future__ import annotations

import logging
import signal
from collections.abc import Mapping
from functools import partial
from pathlib import Path

import torch

from torchrl_ckpt.checkpoint.layout import TRAINER
from torchrl_ckpt.checkpoint.rollout_part import ORCHESTRATOR
from torchrl_ckpt.config.length_limit import model_limit, row_limit, smallest
from torchrl_ckpt.config.sft_recipe import SftRecipe
from torchrl_ckpt.config.trainer import RlTrainerConfig
from torchrl_ckpt.plugin_api.errors import RecipeError
from torchrl_ckpt.plugin_api.models import Model
from torchrl_ckpt.plugin_api.plugin import Json
from torchrl_ckpt.registry.loading import create
from torchrl_ckpt.run.attempt import Attempt
from torchrl_ckpt.run.metrics import MetricsLog
from torchrl_ckpt.run.patience import Patience
from torchrl_ckpt.run.progress import ProgressLog
from torchrl_ckpt.run.rollout_store import RolloutStore
from torchrl_ckpt.run.weight_store import WeightStore
from torchrl_ckpt.trainer.checkpointer import Checkpointer, NullCheckpointer
from torchrl_ckpt.trainer.distributed import (
    World,
    collective_limits,
    join_world,
    seed_everything,
)
from torchrl_ckpt.trainer.loop import Loop, LoopLogs, LoopOptions
from torchrl_ckpt.trainer.optimizer import build_optimizer, build_scheduler
from torchrl_ckpt.trainer.publisher import CanaryOptions, Publisher
from torchrl_ckpt.trainer.rollout_source import RolloutSource
from torchrl_ckpt.trainer.sft_data import checked_samples
from torchrl_ckpt.trainer.sft_source import SftSource
from torchrl_ckpt.trainer.source import BatchSource
from torchrl_ckpt.trainer.state import Progress, TrainingState
from torchrl_ckpt.trainer.train_step import TrainStep
from torchrl_ckpt.trainer.update_check import UpdateLimits

_log = logging.getLogger(__name__)


def train(
    config: SftRecipe | RlTrainerConfig, attempt: Attempt, metadata: Mapping[str, Json]
) -> None:
    """Run this rank. `metadata` goes into the manifests of its checkpoints."""
    is_rl = isinstance(config, RlTrainerConfig)
    stop = _StopRequest(attempt.run.stop)
    limits = collective_limits(config, attempt.ckpt)
    with join_world(threads=config.threads, limits=limits) as world:
        plugin = create("models", config.model)
        progress = ProgressLog(attempt.run.progress, TRAINER)
        seed_everything(config.seed, stream=0)  # For what plugins draw.
        source = _source(config, attempt, plugin, world, progress, stop)
        seed_everything(config.seed, stream=0)  # The same on all ranks: they build one model.
        model = plugin.build(pretrained=attempt.resume_step is None)
        dtype = torch.bfloat16 if world.device.type == "cuda" else torch.float32
        plugin.parallelize(model, world.mesh, param_dtype=dtype)
        model.train()
        seed_everything(config.seed, stream=world.rank + 1)

        optimizer = build_optimizer(model, config.optim)
        scheduler = build_scheduler(optimizer, config.scheduler, attempt.max_steps)
        loss = create("losses", config.loss)
        if missing := loss.requires - source.provides:
            raise RecipeError(
                f"the loss {config.loss.type!r} needs {', '.join(sorted(missing))}, which "
                "supervised fine-tuning does not have; choose another `loss`"
            )
        state = TrainingState(model, optimizer, scheduler, source, Progress())
        train_step = TrainStep(
            model, loss, optimizer, scheduler, config.packing, _update_limits(config), world
        )
        weights = WeightStore(attempt.run.weights)
        patience = Patience(
            config.publish_timeout,
            "trainer.publish_timeout" if is_rl else "publish_timeout",
            progress,
        )
        longest = smallest(row_limit(config.packing), model_limit(plugin))
        assert longest is not None
        publisher = Publisher(
            plugin,
            model,
            weights,
            attempt_id=attempt.id,
            world=world,
            patience=patience,
            canary=CanaryOptions(config.seed, longest.tokens),
        )
        options = LoopOptions(
            max_steps=attempt.max_steps,
            publish_policies=is_rl,
            export_weights=config.export_weights,
            stop_requested=stop.requested,
            on_begin=partial(attempt.run.starting.unlink, missing_ok=True),
        )
        with _checkpointer(config, attempt, metadata, world) as checkpointer:
            checkpointer.load(state)
            if state.progress.step > 0:
                _log.info("resumed from step %d", state.progress.step)
            checkpointer.prepare(state)
            if is_rl and world.is_rank_zero:
                weights.clear()
                checkpointer.restore_policies(weights)
            logs = LoopLogs(MetricsLog(attempt.run.metrics), progress)
            Loop(state, train_step, publisher, checkpointer, logs, world, options).run()
            logs.metrics.flush()


class _StopRequest:
    """Whether this rank is asked to stop after the current step, by a file or by SIGTERM."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._signalled = False
        signal.signal(signal.SIGTERM, self._on_signal)

    def requested(self) -> bool:
        return self._signalled or self._file.exists()

    def _on_signal(self, *_: object) -> None:
        self._signalled = True


def _update_limits(config: SftRecipe | RlTrainerConfig) -> UpdateLimits:
    return UpdateLimits(
        max_norm=config.optim.max_norm,
        on_nonfinite=config.on_nonfinite,
        logprob_tolerance=(
            config.logprob_tolerance if isinstance(config, RlTrainerConfig) else None
        ),
    )


def _source(
    config: SftRecipe | RlTrainerConfig,
    attempt: Attempt,
    plugin: Model,
    world: World,
    progress: ProgressLog,
    stop: _StopRequest,
) -> BatchSource:
    if isinstance(config, RlTrainerConfig):
        return RolloutSource(
            RolloutStore(attempt.run.rollouts),
            attempt_id=attempt.id,
            timeout=config.rollout_timeout,
            stop_requested=stop.requested,
            rank=world.rank,
            world_size=world.size,
        )
    return SftSource(
        checked_samples(config, plugin, world, progress),
        batch_size=config.data.batch_size,
        num_workers=config.data.num_workers,
        seed=config.seed,
        world=world,
    )


def _checkpointer(
    config: SftRecipe | RlTrainerConfig,
    attempt: Attempt,
    metadata: Mapping[str, Json],
    world: World,
) -> Checkpointer | NullCheckpointer:
    if attempt.ckpt is None:
        return NullCheckpointer()
    others = (ORCHESTRATOR,) if isinstance(config, RlTrainerConfig) else ()
    return Checkpointer(
        attempt,
        create("checkpoint_backends", attempt.ckpt.backend),
        world,
        parts=(TRAINER, *others),
        metadata=metadata,
        progress=ProgressLog(attempt.run.progress, TRAINER),
        seed=config.seed,
    )
