"""From a request's fields to the engine and back, the same for completions and chat."""

from __future__ import annotations

import functools
import secrets
from collections.abc import Sequence
from dataclasses import dataclass

from torchrl_ckpt.contracts import Generation, Sample, Sampling, Tokenizer
from torchrl_ckpt.exchange.completions import ChatCompletionRequest, CompletionRequest, Usage
from torchrl_ckpt.inference.failures import BadRequest, NotFound
from torchrl_ckpt.inference.serving import ServedPolicy

_MAX_SEQUENCES = 2**16


@dataclass(frozen=True)
class Generated:
    """What became of a request: `samples[prompt][sample]`, all by one policy."""

    prompts: Sequence[Sequence[int]]
    samples: Sequence[Sequence[Sample]]
    policy_version: int | None

    @property
    def usage(self) -> Usage:
        read = sum(map(len, self.prompts))
        written = sum(len(sample.token_ids) for group in self.samples for sample in group)
        return Usage(prompt_tokens=read, completion_tokens=written, total_tokens=read + written)


class Generator:
    """The served policy with its tokenizer and its name."""

    def __init__(self, policy: ServedPolicy, tokenizer: Tokenizer, model_name: str) -> None:
        self.policy = policy
        self.tokenizer = tokenizer
        self.model_name = model_name
        self._token_text = functools.cache(lambda token: tokenizer.decode([token]))

    def check_model(self, name: str | None) -> None:
        """Raises `NotFound` where the request names another model than the served one."""
        if name not in (None, self.model_name):
            raise NotFound(f"there is no model {name!r} here, only {self.model_name!r}", "model")

    async def generate(
        self,
        prompts: Sequence[Sequence[int]],
        request: CompletionRequest | ChatCompletionRequest,
        seeds: Sequence[int] | None = None,
    ) -> Generated:
        """Sample from the prompts; the tokenizer's end token ends a completion besides others.

        Without `seeds` they follow from the request's seed, or chance. Raises `BadRequest`.
        """
        if len(prompts) * request.n > _MAX_SEQUENCES:
            raise BadRequest(f"more than {_MAX_SEQUENCES} sequences in one request", "n")
        if seeds is None:
            first = secrets.randbits(64) if request.seed is None else request.seed
            seeds = [(first + i) % 2**64 for i in range(len(prompts))]
        sampling = Sampling(
            max_tokens=request.max_tokens,
            temperature=request.temperature,
            top_p=request.top_p,
            top_k=request.top_k,
            stop_token_ids=tuple({*request.stop_token_ids, self.tokenizer.eos_token_id}),
        )
        async with self.policy.in_use() as version:
            try:
                samples = await self.policy.engine.generate(
                    Generation(prompts, seeds, request.n, sampling)
                )
            except ValueError as error:
                raise BadRequest(str(error)) from error
        return Generated(prompts, samples, version)

    async def score(
        self, sequences: Sequence[Sequence[int]]
    ) -> tuple[list[list[float]], int | None]:
        """Log-probabilities of all tokens but the first, and the policy's version.

        Raises `BadRequest`.
        """
        async with self.policy.in_use() as version:
            try:
                return await self.policy.engine.logprobs(sequences), version
            except ValueError as error:
                raise BadRequest(str(error)) from error

    def text(self, token_ids: Sequence[int]) -> str:
        """What a person reads: without end token and the like."""
        return self.tokenizer.decode(token_ids, skip_special_tokens=True)

    def token_texts(self, token_ids: Sequence[int]) -> list[str]:
        """Each token by itself, special ones too."""
        return [self._token_text(token) for token in token_ids]
