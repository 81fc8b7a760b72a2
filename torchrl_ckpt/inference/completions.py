"""`POST /v1/completions`."""

from __future__ import annotations

import itertools
import secrets
import time
from collections.abc import Sequence

from fastapi import APIRouter

from torchrl_ckpt.exchange.completions import (
    Choice,
    Completion,
    CompletionRequest,
    Logprobs,
    Usage,
)
from torchrl_ckpt.inference.generating import Generator


def completion_routes(generator: Generator) -> APIRouter:
    """The route on `generator`."""
    router = APIRouter()

    @router.post("/v1/completions")
    async def complete(request: CompletionRequest) -> Completion:
        generator.check_model(request.model)
        prompts = [
            generator.tokenizer.encode(prompt) if isinstance(prompt, str) else prompt
            for prompt in request.prompts
        ]
        answer = _echo if request.echo else _continue
        choices, usage = await answer(generator, prompts, request)
        return Completion(
            id=f"cmpl-{secrets.token_hex(12)}",
            created=int(time.time()),
            model=generator.model_name,
            choices=choices,
            usage=usage,
        )

    return router


async def _continue(
    generator: Generator, prompts: Sequence[list[int]], request: CompletionRequest
) -> tuple[list[Choice], Usage]:
    generated = await generator.generate(prompts, request, request.prompt_seeds)
    choices = [
        Choice(
            index=prompt * request.n + number,
            text=generator.text(sample.token_ids),
            logprobs=_logprobs(generator, sample.token_ids, sample.logprobs, request),
            finish_reason=sample.finish_reason,
            token_ids=list(sample.token_ids) if request.return_token_ids else None,
            prompt_token_ids=prompts[prompt] if request.return_token_ids else None,
            policy_version=generated.policy_version,
        )
        for prompt, samples in enumerate(generated.samples)
        for number, sample in enumerate(samples)
    ]
    return choices, generated.usage


async def _echo(
    generator: Generator, prompts: Sequence[list[int]], request: CompletionRequest
) -> tuple[list[Choice], Usage]:
    """The prompts themselves, scored."""
    scores, version = await generator.score(prompts)
    choices = [
        Choice(
            index=index,
            text=generator.text(prompt),
            logprobs=_logprobs(generator, prompt, [None, *values], request),
            finish_reason="length",
            token_ids=[] if request.return_token_ids else None,
            prompt_token_ids=prompt if request.return_token_ids else None,
            policy_version=version,
        )
        for index, (prompt, values) in enumerate(zip(prompts, scores, strict=True))
    ]
    read = sum(map(len, prompts))
    return choices, Usage(prompt_tokens=read, completion_tokens=0, total_tokens=read)


def _logprobs(
    generator: Generator,
    token_ids: Sequence[int],
    values: Sequence[float | None],
    request: CompletionRequest,
) -> Logprobs | None:
    if request.logprobs is None:
        return None
    texts = generator.token_texts(token_ids)
    offsets = itertools.accumulate(map(len, texts[:-1]), initial=0)
    return Logprobs(tokens=texts, token_logprobs=list(values), text_offset=list(offsets))
