"""Asks the inference servers for completions, with random numbers that depend on no timing."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import xxhash

from torchrl_ckpt.config.orchestrator import SamplingConfig
from torchrl_ckpt.orchestrator.scoring import Scored, score
from torchrl_ckpt.orchestrator.server_pool import ServerPool
from torchrl_ckpt.plugin_api.engines import GenerationRequest, Sampling
from torchrl_ckpt.plugin_api.environments import Environment, Problem
from torchrl_ckpt.plugin_api.models import Tokenizer


class RolloutGenerator:
    """Completions of problems by the policy that is being served."""

    def __init__(
        self,
        pool: ServerPool,
        environment: Environment,
        tokenizer: Tokenizer,
        *,
        prompts_per_request: int,
    ) -> None:
        self._pool = pool
        self._environment = environment
        self._tokenizer = tokenizer
        self._prompts_per_request = prompts_per_request

    async def complete(
        self,
        problems: Sequence[Problem],
        options: SamplingConfig,
        *,
        num_samples: int,
        seed: str,
        on_progress: Callable[[int], None],
    ) -> list[list[Scored]]:
        """`[problem][sample]`, scored. The noise of a sample is keyed by `seed`, its problem and
        its number."""
        prompts = [self.prompt_ids(problem) for problem in problems]
        seeds = [
            xxhash.xxh3_64_intdigest(f"{seed}/{place}/{problem.id}".encode()) >> 1
            for place, problem in enumerate(problems)
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
            GenerationRequest(prompts[i : i + size], seeds[i : i + size], num_samples, sampling)
            for i in range(0, len(prompts), size)
        ]
        done = 0

        def count(request: GenerationRequest) -> None:
            nonlocal done
            done += len(request.prompts) * num_samples
            on_progress(done)

        completed = await self._pool.complete(requests, count)
        groups = [(group, answer.load) for answer in completed for group in answer.samples]
        return [
            [
                score(self._environment, self._tokenizer, problem, prompt, sample, load)
                for sample in group
            ]
            for problem, prompt, (group, load) in zip(problems, prompts, groups, strict=True)
        ]

    def prompt_ids(self, problem: Problem) -> list[int]:
        """The prompt's tokens, up to where the completion begins."""
        if isinstance(problem.prompt, str):
            return self._tokenizer.encode(problem.prompt, add_special_tokens=False)
        return list(
            self._tokenizer.apply_chat_template(
                problem.prompt, tokenize=True, add_generation_prompt=True, return_dict=False
            )
        )
