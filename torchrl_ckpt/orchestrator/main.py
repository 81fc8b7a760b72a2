"""The orchestrator from start to end: builds what the recipe names, resumes and generates."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from pathlib import Path

from torchrl_ckpt.checkpoint.layout import Layout
from torchrl_ckpt.config.orchestrator import OrchestratorConfig
from torchrl_ckpt.orchestrator.evaluation import Evaluator
from torchrl_ckpt.orchestrator.loop import Loop
from torchrl_ckpt.orchestrator.rollout_generator import RolloutGenerator
from torchrl_ckpt.orchestrator.server_pool import ServerPool
from torchrl_ckpt.orchestrator.state import COMPONENT, OrchestratorState
from torchrl_ckpt.registry.loading import create
from torchrl_ckpt.run.attempt import Attempt
from torchrl_ckpt.run.progress import ProgressLog
from torchrl_ckpt.shuffled_stream import ShuffledStream

_log = logging.getLogger(__name__)


def orchestrate(config: OrchestratorConfig, attempt: Attempt) -> None:
    """Run the orchestrator until the trainer has published its last policy."""
    asyncio.run(_orchestrate(config, attempt))


async def _orchestrate(config: OrchestratorConfig, attempt: Attempt) -> None:
    environment = create("environments", config.environment)
    model = create("models", config.model)
    state = OrchestratorState(
        ShuffledStream(environment.size("train"), config.seed), async_level=config.async_level
    )
    carried = _resume(attempt, state)
    progress = ProgressLog(attempt.run.progress, COMPONENT)
    async with contextlib.aclosing(ServerPool(config.client, progress)) as pool:
        generator = RolloutGenerator(
            pool,
            environment,
            model.tokenizer(),
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
        await loop.run(carried)


def _resume(attempt: Attempt, state: OrchestratorState) -> list[Path]:
    """Restore `state`; return the directories of the batches that the checkpoint carries."""
    if attempt.resume_step is None:
        return []
    assert attempt.ckpt is not None
    layout = Layout.of_run(attempt.output_dir, attempt.ckpt)
    carried = state.restore(layout, attempt.resume_step)
    _log.info("resumed from step %d with %d batches in flight", attempt.resume_step, len(carried))
    return carried
