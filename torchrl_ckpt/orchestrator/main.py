"""The orchestrator from start to end: builds what the recipe names, resumes, generates, leaves."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import logging

from torchrl_ckpt import registry
from torchrl_ckpt.checkpoint.layout import Layout
from torchrl_ckpt.config.orchestrator import OrchestratorConfig
from torchrl_ckpt.orchestrator.evaluation import Evaluator
from torchrl_ckpt.orchestrator.loop import Loop
from torchrl_ckpt.orchestrator.rollout_generator import RolloutGenerator
from torchrl_ckpt.orchestrator.server_pool import ServerPool
from torchrl_ckpt.orchestrator.state import COMPONENT, OrchestratorState
from torchrl_ckpt.plugin_api.environments import Environment
from torchrl_ckpt.plugin_api.models import Model
from torchrl_ckpt.run.directory import RunDirectory
from torchrl_ckpt.run.progress import ProgressLog
from torchrl_ckpt.run.rollout_store import RolloutBatch
from torchrl_ckpt.shuffled_stream import ShuffledStream

_log = logging.getLogger(__name__)


def orchestrate(config: OrchestratorConfig) -> None:
    """Run the orchestrator until the trainer has published its last policy."""
    asyncio.run(_orchestrate(config))


async def _orchestrate(config: OrchestratorConfig) -> None:
    environment: Environment = registry.create(
        "environments", config.environment.type, config.environment.options
    )
    model: Model = registry.create("models", config.model.type, config.model.options)
    state = OrchestratorState(
        ShuffledStream(environment.size("train"), config.seed), async_level=config.async_level
    )
    carried, resumed_from = _resume(config, state)
    run = RunDirectory(config.output_dir, config.attempt)
    progress = ProgressLog(run.progress, COMPONENT)
    async with contextlib.aclosing(ServerPool(config.client, progress)) as pool:
        generator = RolloutGenerator(
            pool,
            environment,
            model.tokenizer(),
            prompts_per_request=config.client.prompts_per_request,
        )
        evaluator = None
        if config.evaluation is not None:
            evaluator = Evaluator(
                config.evaluation,
                environment,
                generator,
                config.sampling,
                progress,
                seed=config.seed,
            )
        loop = Loop(
            config,
            environment,
            state,
            pool,
            generator,
            evaluator,
            progress=progress,
            resumed_from=resumed_from,
        )
        await loop.run(carried)


def _resume(config: OrchestratorConfig, state: OrchestratorState) -> tuple[list[RolloutBatch], int]:
    """The batches that the checkpoint carries, now of this attempt, and its step; 0 if fresh."""
    if config.ckpt is None or config.ckpt.resume_step is None:
        return [], 0
    step = config.ckpt.resume_step
    assert isinstance(step, int)
    carried = state.restore(Layout(config.output_dir / config.ckpt.directory), step)
    _log.info("resumed from step %d with %d batches under way", step, len(carried))
    return [dataclasses.replace(batch, attempt=config.attempt) for batch in carried], step
