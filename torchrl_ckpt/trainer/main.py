"""A trainer rank from start to end: builds what the recipe names, resumes, trains, leaves."""

from __future__ import annotations

import logging
import signal
from collections.abc import Mapping
from pathlib import Path

import torch

from torchrl_ckpt.config.sft_recipe import SftDataConfig, SftRecipe
from torchrl_ckpt.config.trainer import RlTrainerConfig
from torchrl_ckpt.plugin_api.errors import RecipeError
from torchrl_ckpt.plugin_api.models import Model
from torchrl_ckpt.plugin_api.plugin import Json
from torchrl_ckpt.registry.loading import create
from torchrl_ckpt.run.attempt import Attempt
from torchrl_ckpt.run.metrics import MetricsLog
from torchrl_ckpt.run.progress import ProgressLog
from torchrl_ckpt.run.rollout_store import RolloutStore
from torchrl_ckpt.run.weight_store import WeightStore
from torchrl_ckpt.trainer.checkpointer import COMPONENT, Checkpointer
from torchrl_ckpt.trainer.distributed import World, join_world, seed_everything
from torchrl_ckpt.trainer.loop import Loop
from torchrl_ckpt.trainer.optimizer import build_optimizer, build_scheduler
from torchrl_ckpt.trainer.publisher import Publisher
from torchrl_ckpt.trainer.rollout_source import RolloutSource
from torchrl_ckpt.trainer.sft_samples import EnvironmentSamples, FileSamples
from torchrl_ckpt.trainer.sft_source import SftSource
from torchrl_ckpt.trainer.source import BatchSource
from torchrl_ckpt.trainer.state import Progress, TrainingState
from torchrl_ckpt.trainer.train_step import TrainStep

_COLLECTIVE_TIMEOUT = 3600.0

_log = logging.getLogger(__name__)


def train(
    config: SftRecipe | RlTrainerConfig, attempt: Attempt, metadata: Mapping[str, Json]
) -> None:
    """Run this rank. `metadata` goes into the manifests of its checkpoints."""
    run = attempt.run
    stop = _StopRequest(run.stop)
    with join_world(threads=config.threads, timeout=_COLLECTIVE_TIMEOUT) as world:
        seed_everything(config.seed, stream=0)  # The same on all ranks: they build one model.
        resuming = attempt.resume_step is not None
        plugin = create("models", config.model)
        model = plugin.build(pretrained=not resuming)
        dtype = torch.bfloat16 if world.device.type == "cuda" else torch.float32
        plugin.parallelize(model, world.mesh, param_dtype=dtype)
        model.train()
        seed_everything(config.seed, stream=world.rank + 1)

        optimizer = build_optimizer(model, config.optim)
        scheduler = build_scheduler(optimizer, config.scheduler, attempt.max_steps)
        weights = WeightStore(run.weights)
        publisher = Publisher(plugin, model, weights, attempt=attempt.number, world=world)
        source = _source(config, attempt, plugin, world)
        loss = create("losses", config.loss)
        if missing := loss.requires - source.provides:
            raise RecipeError(
                f"the loss {config.loss.type!r} needs {', '.join(sorted(missing))}, which "
                "supervised fine-tuning does not have; choose another `loss`"
            )
        state = TrainingState(model, optimizer, scheduler, source, Progress())
        checkpoints = _checkpoints(config, attempt, metadata, world)
        if checkpoints is not None and resuming:
            checkpoints.restore(state)
            _log.info("resumed from step %d", state.progress.step)

        is_rl = isinstance(config, RlTrainerConfig)
        if is_rl and world.leads:
            weights.clear()
        Loop(
            TrainStep(
                model,
                loss,
                optimizer,
                scheduler,
                config.packing,
                config.optim.max_norm,
                world,
                before_change=checkpoints.wait_staged if checkpoints else lambda: None,
            ),
            source,
            state,
            MetricsLog(run.metrics),
            world,
            publisher=publisher,
            serving=is_rl,
            keeping=config.export_weights,
            max_steps=attempt.max_steps,
            checkpoints=checkpoints,
            stop_requested=stop.requested,
        ).run()
        if checkpoints is not None:
            checkpoints.close()


class _StopRequest:
    """Whether this rank was asked to leave after the step under way: by a file or a SIGTERM."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._signalled = False
        signal.signal(signal.SIGTERM, self._on_signal)

    def requested(self) -> bool:
        return self._signalled or self._file.exists()

    def _on_signal(self, *_: object) -> None:
        self._signalled = True


def _source(
    config: SftRecipe | RlTrainerConfig, attempt: Attempt, plugin: Model, world: World
) -> BatchSource:
    if isinstance(config, RlTrainerConfig):
        return RolloutSource(
            RolloutStore(attempt.run.rollouts),
            attempt=attempt.number,
            timeout=config.rollout_timeout,
            world=world,
        )
    return SftSource(
        _samples(config.data, plugin),
        batch_size=config.data.batch_size,
        num_workers=config.data.num_workers,
        seed=config.seed,
        world=world,
    )


def _samples(data: SftDataConfig, plugin: Model) -> FileSamples | EnvironmentSamples:
    if data.environment is not None:
        return EnvironmentSamples(create("environments", data.environment), plugin.tokenizer())
    return FileSamples(data.files, plugin.tokenizer())


def _checkpoints(
    config: SftRecipe | RlTrainerConfig,
    attempt: Attempt,
    metadata: Mapping[str, Json],
    world: World,
) -> Checkpointer | None:
    if attempt.ckpt is None:
        return None
    others = ("orchestrator",) if isinstance(config, RlTrainerConfig) else ()
    return Checkpointer(
        attempt,
        create("checkpoint_backends", attempt.ckpt.backend),
        world,
        parts=(COMPONENT, *others),
        metadata=metadata,
        progress=ProgressLog(attempt.run.progress, COMPONENT),
        seed=config.seed,
    )
