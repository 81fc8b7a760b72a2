"""Asks the inference server for completions, with random numbers that depend on no timing."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

import xxhash

from torchrl_ckpt.contracts import Environment, Generation, Problem, Sample, Sampling, Tokenizer
from torchrl_ckpt.errors import WrongPolicy
from torchrl_ckpt.exchange.client import InferenceClient
from torchrl_ckpt.orchestrator.scoring import Scored, score
from torchrl_ckpt.recipe.schema import SamplingOptions


class Generator:
    """Completions of problems by the policy that is being served."""

    def __init__(
        self,
        client: InferenceClient,
        environment: Environment,
        tokenizer: Tokenizer,
        *,
        prompts_per_request: int,
    ) -> None:
        self._client = client
        self._environment = environment
        self._tokenizer = tokenizer
        self._prompts_per_request = prompts_per_request

    async def complete(
        self,
        problems: Sequence[Problem],
        options: SamplingOptions,
        *,
        num_samples: int,
        policy_version: int,
        seed: str,
        on_progress: Callable[[int], None],
    ) -> list[list[Scored]]:
        """`[problem][sample]`, scored. The noise of a sample is keyed by `seed`, its problem and
        its number. Raises `WrongPolicy` for a completion by another policy."""
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
        done = 0

        async def ask(start: int) -> list[list[Sample]]:
            nonlocal done
            part = slice(start, start + self._prompts_per_request)
            request = Generation(prompts[part], seeds[part], num_samples, sampling)
            samples, version = await self._client.generate(request)
            if version != policy_version:
                raise WrongPolicy(
                    f"asked for completions by the policy of step {policy_version}, and the "
                    f"server answered with that of step {version}; is another job using it?"
                )
            done += len(request.prompts) * num_samples
            on_progress(done)
            return samples

        starts = range(0, len(prompts), self._prompts_per_request)
        answers = await asyncio.gather(*(ask(start) for start in starts))
        groups = [group for answer in answers for group in answer]
        return [
            [score(self._environment, self._tokenizer, problem, prompt, sample) for sample in group]
            for problem, prompt, group in zip(problems, prompts, groups, strict=True)
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
