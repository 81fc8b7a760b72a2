"""The orchestrator from start to end: builds what the recipe names, resumes and generates."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from pathlib import Path

from torchrl_ckpt.checkpoint.layout import Layout
from torchrl_ckpt.checkpoint.rollout_part import ORCHESTRATOR
from torchrl_ckpt.config.length_limit import model_limit, row_limit, server_limit, smallest
from torchrl_ckpt.config.orchestrator import OrchestratorConfig
from torchrl_ckpt.config.rl_recipe import RlRecipe
from torchrl_ckpt.orchestrator.evaluation import Evaluator, num_evaluated
from torchrl_ckpt.orchestrator.loop import Loop
from torchrl_ckpt.orchestrator.prompts import Prompts
from torchrl_ckpt.orchestrator.rollout_generator import RolloutGenerator
from torchrl_ckpt.orchestrator.server_pool import ServerPool
from torchrl_ckpt.orchestrator.state import OrchestratorState
from torchrl_ckpt.plugin_api import heartbeat
from torchrl_ckpt.plugin_api.checked_environment import CheckedEnvironment
from torchrl_ckpt.plugin_api.models import Model
from torchrl_ckpt.registry.loading import create
from torchrl_ckpt.run.attempt import Attempt
from torchrl_ckpt.run.progress import Finding, ProgressLog
from torchrl_ckpt.shuffled_stream import ShuffledStream

_BEAT_SECONDS = 1.0

_log = logging.getLogger(__name__)


def orchestrate(config: OrchestratorConfig, attempt: Attempt, job: RlRecipe | None) -> None:
    """Run the orchestrator until the trainer has published its last policy.

    `job` is the recipe of the whole job; None where the orchestrator was started by hand.
    """
    asyncio.run(_orchestrate(config, attempt, job))


def check_problems(config: OrchestratorConfig, job: RlRecipe | None) -> list[Finding]:
    """Check what can be checked of the problems before the first step.

    Raises `EnvironmentFailed`, `DataError` and `RecipeError`.
    """
    environment = create("environments", config.environment)
    model = create("models", config.model)
    return _check(config, environment, _prompts(environment, model, job))


async def _orchestrate(config: OrchestratorConfig, attempt: Attempt, job: RlRecipe | None) -> None:
    environment = create("environments", config.environment)
    model = create("models", config.model)
    progress = ProgressLog(attempt.run.progress, ORCHESTRATOR)
    prompts = _prompts(environment, model, job)
    with progress.task("checking the problems"):
        progress.report(_check(config, environment, prompts))
    state = OrchestratorState(
        ShuffledStream(environment.size("train"), config.seed), async_level=config.async_level
    )
    carried = _resume(attempt, state)
    # A prompt has at least one token.
    servers = ServerPool(config.client, progress, longest=config.sampling.max_tokens + 1)
    async with contextlib.aclosing(servers) as pool:
        generator = RolloutGenerator(
            pool,
            environment,
            model.tokenizer(),
            prompts,
            prompts_per_request=config.client.prompts_per_request,
            advantage=config.advantage,
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
        loop = Loop(config, attempt, state, pool, generator, evaluator, progress)
        beats = asyncio.create_task(_beat())
        try:
            await loop.run(carried)
        finally:
            beats.cancel()


async def _beat() -> None:
    """Show that the event loop runs; what it waits for has limits, or heartbeats, of its own."""
    while True:
        heartbeat.beat()
        await asyncio.sleep(_BEAT_SECONDS)


def _prompts(environment: CheckedEnvironment, model: Model, job: RlRecipe | None) -> Prompts:
    """Prompts with their limits: the server's for all, and the trainer's row for training."""
    served = model_limit(model)
    trained = served
    if job is not None:
        if job.inference is not None:
            served = smallest(served, server_limit(job.inference))
        trained = smallest(served, row_limit(job.trainer.packing, "trainer."))
    return Prompts(environment, model.tokenizer(), {"train": trained, "eval": served})


def _check(
    config: OrchestratorConfig, environment: CheckedEnvironment, prompts: Prompts
) -> list[Finding]:
    findings = []
    size = environment.size("train")
    if size is not None:
        findings.append(prompts.check("train", size, max_tokens=config.sampling.max_tokens))
        if config.prompts_per_step > size:
            findings.append(
                Finding(
                    f"`orchestrator.prompts_per_step` is {config.prompts_per_step:,} and the "
                    f"environment has {size:,} problems: a step has some of them several times",
                    "warning",
                )
            )
    if config.evaluation is not None:
        sampling = config.evaluation.sampling or config.sampling
        count = num_evaluated(config.evaluation, environment)
        findings.append(prompts.check("eval", count, max_tokens=sampling.max_tokens))
    return findings


def _resume(attempt: Attempt, state: OrchestratorState) -> list[Path]:
    """Restore `state`; return the directories of the batches that the checkpoint carries."""
    if attempt.resume_step is None:
        return []
    assert attempt.ckpt is not None
    layout = Layout.of_run(attempt.output_dir, attempt.ckpt)
    carried = state.restore(layout, attempt.resume_step)
    _log.info("resumed from step %d with %d batches in flight", attempt.resume_step, len(carried))
    return carried
