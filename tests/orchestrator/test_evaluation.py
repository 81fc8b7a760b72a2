"""Every evaluation uses the same held-out problems and the same noise."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from tests.support.scripted_server import (
    PerSampleEngine,
    publish_scripted_policy,
    scripted_server,
)
from tests.support.tiny_model import tiny_model
from tests.support.toy_environment import ToyEnvironment, toy_generator
from torchrl_ckpt.config.orchestrator import ClientConfig, EvaluationConfig, SamplingConfig
from torchrl_ckpt.orchestrator.evaluation import Evaluator
from torchrl_ckpt.orchestrator.server_pool import ServerPool
from torchrl_ckpt.plugin_api.checked_environment import CheckedEnvironment
from torchrl_ckpt.plugin_api.errors import RecipeError
from torchrl_ckpt.run.progress import ProgressLog, ProgressTail, TaskUpdate

TOKENIZER = tiny_model().tokenizer()
A, B = TOKENIZER.encode("ab", add_special_tokens=False)
TRAINING_SAMPLING = SamplingConfig(max_tokens=7, temperature=0.7)

MakeEvaluator = Callable[..., Evaluator]


@pytest.fixture(name="progress")
def progress_path(tmp_path: Path) -> Path:
    return tmp_path / "progress.jsonl"


@pytest.fixture(name="engine")
def make_engine() -> PerSampleEngine:
    return PerSampleEngine([[B, A], [A, A]])


@pytest_asyncio.fixture(name="evaluator")
async def make_evaluator(
    engine: PerSampleEngine, tmp_path: Path, progress: Path
) -> AsyncIterator[MakeEvaluator]:
    """Makes evaluators of the policy that is being served; options are of `[evaluation]`."""
    log = ProgressLog(progress, "orchestrator")
    async with scripted_server(engine, tmp_path) as base_url:
        pool = ServerPool(ClientConfig(base_url=base_url, timeout=60), log)
        async with contextlib.aclosing(pool):
            await pool.serve(*publish_scripted_policy(tmp_path, 0))

            def make(*, num_eval: int | None = 5, seed: int = 1, **options: Any) -> Evaluator:
                environment = CheckedEnvironment("toy", ToyEnvironment(num_eval=num_eval))
                generator = toy_generator(pool, environment, TOKENIZER)
                config = EvaluationConfig(samples_per_problem=2, **options)
                return Evaluator(config, environment, generator, TRAINING_SAMPLING, log, seed=seed)

            yield make


async def test_the_row_has_the_means_over_all_held_out_problems(evaluator: MakeEvaluator) -> None:
    row = await evaluator().evaluate()
    assert row == {
        "reward/mean": 0.25,
        "reward/std": 0.25,
        "completion_tokens/mean": 2.0,
        "truncated/mean": 1.0,
        "exact/mean": 0.5,
        "problems": 5,
    }


async def test_every_evaluation_sends_the_same_request(
    evaluator: MakeEvaluator, engine: PerSampleEngine
) -> None:
    same, other = evaluator(), evaluator(seed=2)
    await same.evaluate()
    await same.evaluate()
    await other.evaluate()
    first, second, third = engine.requests
    assert list(first.seeds) == list(second.seeds) != list(third.seeds)


@pytest.mark.parametrize(
    ("num_problems", "num_eval", "expected"), [(None, 5, 5), (3, 5, 3), (8, 5, 5), (8, None, 8)]
)
async def test_num_problems_limits_the_held_out_problems(
    evaluator: MakeEvaluator, num_problems: int | None, num_eval: int | None, expected: int
) -> None:
    row = await evaluator(num_eval=num_eval, num_problems=num_problems).evaluate()
    assert row["problems"] == expected


async def test_an_environment_without_limit_needs_num_problems(evaluator: MakeEvaluator) -> None:
    with pytest.raises(RecipeError, match=r"`orchestrator\.evaluation\.num_problems`"):
        evaluator(num_eval=None)


async def test_evaluation_samples_as_training_unless_it_has_its_own_sampling(
    evaluator: MakeEvaluator, engine: PerSampleEngine
) -> None:
    await evaluator().evaluate()
    await evaluator(sampling=SamplingConfig(max_tokens=9, temperature=0.0)).evaluate()
    assert [request.sampling.max_tokens for request in engine.requests] == [7, 9]
    assert [request.sampling.temperature for request in engine.requests] == [0.7, 0.0]


async def test_it_is_due_at_the_start_at_the_end_and_every_interval(
    evaluator: MakeEvaluator,
) -> None:
    once, often = evaluator(), evaluator(interval=2)
    assert [once.is_due(step, last=step == 5) for step in range(6)] == [
        *(True, False, False, False, False, True)
    ]
    assert [often.is_due(step, last=step == 5) for step in range(6)] == [
        *(True, False, True, False, True, True)
    ]


async def test_progress_is_a_task_with_the_number_of_rollouts(
    evaluator: MakeEvaluator, progress: Path
) -> None:
    await evaluator().evaluate()
    events = [event for event in ProgressTail(progress).read() if isinstance(event, TaskUpdate)]
    assert {event.task for event in events} == {"evaluation"}
    assert (events[-1].completed, events[-1].total, events[-1].ended) == (10, 10, True)
