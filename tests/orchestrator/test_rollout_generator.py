"""Rollouts are scored by group, and depend on the problems and the seed alone."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Literal

import pytest
import pytest_asyncio

from tests.support.scripted_server import (
    PerSampleEngine,
    publish_scripted_policy,
    scripted_server,
)
from tests.support.tiny_model import tiny_model
from tests.support.toy_environment import ToyEnvironment, toy_generator
from torchrl_ckpt.config.orchestrator import ClientConfig, SamplingConfig
from torchrl_ckpt.orchestrator.rollout_generator import rollout_metrics
from torchrl_ckpt.orchestrator.server_pool import ServerPool
from torchrl_ckpt.plugin_api.checked_environment import CheckedEnvironment
from torchrl_ckpt.run.progress import ProgressLog
from torchrl_ckpt.run.rollout_store import Rollout

TOKENIZER = tiny_model().tokenizer()
A, B = TOKENIZER.encode("ab", add_special_tokens=False)
END = TOKENIZER.eos_token_id

SAMPLES = [[B, A, END], [A, A, END], [B, B], [A, B]]


class Generation:
    """A served policy, the engine behind it, and the environment that scores its samples."""

    def __init__(self, pool: ServerPool, engine: PerSampleEngine) -> None:
        self.engine = engine
        self.environment = ToyEnvironment()
        self.progress: list[int] = []
        self._pool = pool

    async def rollouts(
        self,
        indices: list[int],
        *,
        seed: str = "7/1",
        prompts_per_request: int = 128,
        advantage: Literal["centred", "normalised"] = "centred",
    ) -> list[Rollout]:
        generator = toy_generator(
            self._pool,
            CheckedEnvironment("toy", self.environment),
            TOKENIZER,
            prompts_per_request=prompts_per_request,
            advantage=advantage,
        )
        return await generator.generate(
            "train",
            indices,
            SamplingConfig(max_tokens=3, temperature=0.7, top_p=0.9, top_k=5),
            num_samples=4,
            seed=seed,
            on_progress=self.progress.append,
        )


@pytest_asyncio.fixture(name="generation")
async def serve_policy(tmp_path: Path) -> AsyncIterator[Generation]:
    """Generation with policy 3 being served."""
    engine = PerSampleEngine(SAMPLES)
    policy, directory = publish_scripted_policy(tmp_path, 3)
    async with scripted_server(engine, tmp_path) as base_url:
        pool = ServerPool(
            ClientConfig(base_url=base_url, timeout=60), ProgressLog(tmp_path / "p", "orchestrator")
        )
        async with contextlib.aclosing(pool):
            await pool.serve(policy, directory)
            yield Generation(pool, engine)


async def test_a_rollout_has_the_engine_s_tokens_and_the_environment_s_score(
    generation: Generation,
) -> None:
    rollouts = await generation.rollouts([4])
    weights_id = rollouts[0].weights_id
    assert rollouts[1] == Rollout(
        problem="train 4",
        prompt=TOKENIZER.encode("ab>", add_special_tokens=False),
        completion=[A, A, END],
        logprobs=[-0.5, -0.5, -0.5],
        is_truncated=False,
        reward=0.0,
        metrics={"exact": 0.0},
        advantage=-0.5,
        policy_version=3,
        weights_id=weights_id,
    )
    assert weights_id
    assert {rollout.weights_id for rollout in rollouts} == {weights_id}
    assert [rollout.is_truncated for rollout in rollouts] == [False, False, True, True]


async def test_the_end_token_is_not_scored(generation: Generation) -> None:
    await generation.rollouts([0])
    assert generation.environment.completions == ["ba", "aa", "bb", "ab"]


async def test_advantages_compare_the_samples_of_one_problem(generation: Generation) -> None:
    rollouts = await generation.rollouts([0, 1])
    assert [rollout.problem for rollout in rollouts] == ["train 0"] * 4 + ["train 1"] * 4
    assert [rollout.reward for rollout in rollouts] == [0.5, 0.0, 1.0, 0.5] * 2
    assert [rollout.advantage for rollout in rollouts] == [0.0, -0.5, 0.5, 0.0] * 2
    normalised = await generation.rollouts([0], advantage="normalised")
    deviation = 0.125**0.5
    assert [rollout.advantage for rollout in normalised] == pytest.approx(
        [0.0, -0.5 / deviation, 0.5 / deviation, 0.0], rel=1e-4
    )


async def test_the_seeds_depend_on_seed_position_and_problem_but_not_on_the_requests(
    generation: Generation,
) -> None:
    together = await generation.rollouts([2, 2, 5])
    apart = await generation.rollouts([2, 2, 5], prompts_per_request=2)
    assert apart == together
    (whole, *parts) = generation.engine.requests
    assert [len(part.prompts) for part in parts] == [2, 1]
    assert [seed for part in parts for seed in part.seeds] == list(whole.seeds)
    assert len(set(whole.seeds)) == 3
    await generation.rollouts([2, 2, 5], seed="7/2")
    assert not set(generation.engine.requests[-1].seeds) & set(whole.seeds)


async def test_the_recipe_s_sampling_reaches_the_engine(generation: Generation) -> None:
    await generation.rollouts([0])
    sampling = generation.engine.requests[0].sampling
    assert (sampling.max_tokens, sampling.temperature) == (3, 0.7)
    assert (sampling.top_p, sampling.top_k) == (0.9, 5)
    assert tuple(sampling.stop_token_ids) == (END,)


async def test_progress_counts_rollouts(generation: Generation) -> None:
    await generation.rollouts([0, 1, 2], prompts_per_request=2)
    assert sorted(generation.progress) in ([4, 12], [8, 12])


async def test_metrics_are_means_over_all_rollouts(generation: Generation) -> None:
    assert rollout_metrics(await generation.rollouts([0, 1])) == {
        "reward/mean": 0.5,
        "reward/std": pytest.approx(0.125**0.5),
        "completion_tokens/mean": 2.5,
        "truncated/mean": 0.5,
        "exact/mean": 0.25,
    }
