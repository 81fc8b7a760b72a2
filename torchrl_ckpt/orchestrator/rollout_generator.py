"""Generates scored rollouts, with random numbers that do not depend on timing."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from typing import Literal

import xxhash

from torchrl_ckpt.config.orchestrator import SamplingConfig
from torchrl_ckpt.orchestrator.advantages import group_advantages
from torchrl_ckpt.orchestrator.prompts import Prompt, Prompts
from torchrl_ckpt.orchestrator.server_pool import ServerPool
from torchrl_ckpt.plugin_api.checked_environment import CheckedEnvironment
from torchrl_ckpt.plugin_api.engines import GenerationRequest, Sampling
from torchrl_ckpt.plugin_api.environments import Problem, Score, Split
from torchrl_ckpt.plugin_api.models import Tokenizer
from torchrl_ckpt.run.rollout_store import Rollout
from torchrl_ckpt.serving_api.protocol import Choice, Completion


class RolloutGenerator:
    """Generates rollouts with the policy that `pool` serves; `environment` scores them."""

    def __init__(
        self,
        pool: ServerPool,
        environment: CheckedEnvironment,
        tokenizer: Tokenizer,
        prompts: Prompts,
        *,
        prompts_per_request: int,
        advantage: Literal["centred", "normalised"],
    ) -> None:
        self._pool = pool
        self._environment = environment
        self._tokenizer = tokenizer
        self._prompts = prompts
        self._prompts_per_request = prompts_per_request
        self._advantage = advantage

    async def generate(
        self,
        split: Split,
        indices: Sequence[int],
        options: SamplingConfig,
        *,
        num_samples: int,
        seed: str,
        on_progress: Callable[[int], None],
    ) -> list[Rollout]:
        """Return `num_samples` rollouts of each problem in `indices`: by problem, then by sample.

        The noise of a rollout is keyed by `seed`, its problem and its sample number.
        `on_progress` is called with the number of rollouts generated so far. Raises
        `EnvironmentFailed`, and `DataError` for a prompt that leaves no room for a completion.
        """
        prompts = self._prompts.take(split, indices, max_tokens=options.max_tokens)
        token_ids = [prompt.token_ids for prompt in prompts]
        seeds = [
            xxhash.xxh3_64_intdigest(f"{seed}/{position}/{prompt.problem.id}".encode()) >> 1
            for position, prompt in enumerate(prompts)
        ]
        sampling = Sampling(
            max_tokens=options.max_tokens,
            temperature=options.temperature,
            top_p=options.top_p,
            top_k=options.top_k,
            stop_token_ids=(self._tokenizer.eos_token_id,),
        )
        size = self._prompts_per_request
        requests = [
            GenerationRequest(token_ids[i : i + size], seeds[i : i + size], num_samples, sampling)
            for i in range(0, len(token_ids), size)
        ]
        num_generated = 0

        def count(request: GenerationRequest) -> None:
            nonlocal num_generated
            num_generated += len(request.prompts) * num_samples
            on_progress(num_generated)

        completions = await self._pool.complete(requests, count)
        groups = [
            (completion.choices[i : i + num_samples], _weights(completion))
            for completion in completions
            for i in range(0, len(completion.choices), num_samples)
        ]
        return [
            rollout
            for prompt, (choices, weights) in zip(prompts, groups, strict=True)
            for rollout in self._group(prompt, choices, *weights)
        ]

    def _group(
        self,
        prompt: Prompt,
        choices: Sequence[Choice],
        policy_version: int,
        weights_id: str,
    ) -> list[Rollout]:
        """Return the rollouts of one problem, whose rewards are compared with each other."""
        tokens = [choice.token_ids or [] for choice in choices]
        scores = [self._score(prompt.problem, completion) for completion in tokens]
        advantages = group_advantages([score.reward for score in scores], self._advantage)
        return [
            Rollout(
                problem=prompt.problem.id,
                prompt=prompt.token_ids,
                completion=completion,
                logprobs=choice.token_logprobs,
                is_truncated=choice.finish_reason == "length",
                reward=score.reward,
                metrics=score.metrics,
                advantage=advantage,
                policy_version=policy_version,
                weights_id=weights_id,
            )
            for choice, completion, score, advantage in zip(
                choices, tokens, scores, advantages, strict=True
            )
        ]

    def _score(self, problem: Problem, completion: Sequence[int]) -> Score:
        """Score the text of the tokens, without the end token."""
        tokens = list(completion)
        if tokens and tokens[-1] == self._tokenizer.eos_token_id:
            tokens.pop()
        text = self._tokenizer.decode(tokens, skip_special_tokens=False)
        return self._environment.score(problem, text)


def rollout_metrics(rollouts: Sequence[Rollout]) -> dict[str, float]:
    """Return the means over `rollouts` of the reward, the length and the environment's metrics.

    A metric that not every score has is averaged over those that have it.
    """
    rewards = [rollout.reward for rollout in rollouts]
    row = {
        "reward/mean": statistics.fmean(rewards),
        "reward/std": statistics.pstdev(rewards),
        "completion_tokens/mean": statistics.fmean(len(rollout.completion) for rollout in rollouts),
        "truncated/mean": statistics.fmean(rollout.is_truncated for rollout in rollouts),
    }
    for name in sorted({name for rollout in rollouts for name in rollout.metrics}):
        values = [rollout.metrics[name] for rollout in rollouts if name in rollout.metrics]
        row[f"{name}/mean"] = statistics.fmean(values)
    return row


def _weights(completion: Completion) -> tuple[int, str]:
    """Return the version and the id of the weights that drew every token.

    There is only one of each, as `PooledServer` has verified.
    """
    (span,) = {
        (span.version, span.weights_id) for choice in completion.choices for span in choice.policy
    }
    version, weights_id = span
    assert version is not None
    assert weights_id is not None
    return version, weights_id
