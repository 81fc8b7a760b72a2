"""`POST /v1/completions`."""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from fastapi import APIRouter, Depends, Request
from pydantic import BaseModel

from torchrl_ckpt.inference.bodies import parsed_body
from torchrl_ckpt.inference.completion_service import CompletionService
from torchrl_ckpt.inference.responder import Responder
from torchrl_ckpt.inference.side_thread import SideThread
from torchrl_ckpt.inference.sse import EventStream
from torchrl_ckpt.inference.stream import Chunk
from torchrl_ckpt.plugin_api.engines import Sample
from torchrl_ckpt.serving_api.protocol import (
    Choice,
    ChoiceChunk,
    Completion,
    CompletionChunk,
    CompletionRequest,
    Logprobs,
    PolicySpan,
)


def completion_routes(
    service: CompletionService, side_thread: SideThread, client_timeout: float
) -> APIRouter:
    """Return the route that completes with `service`."""
    router = APIRouter()
    parsed = Depends(parsed_body(CompletionRequest, side_thread))

    @router.post("/v1/completions", response_model=Completion)
    async def complete(
        http_request: Request, request: CompletionRequest = parsed
    ) -> BaseModel | EventStream:
        service.check_model(request.model)
        prompts = await service.encode(request)
        return await CompletionResponder(service, request, prompts, client_timeout).respond(
            http_request.receive
        )

    return router


class CompletionResponder(Responder[CompletionRequest]):
    """Completes the prompts of the request or, with `echo`, scores them."""

    id_prefix = "cmpl"
    response_type = Completion
    chunk_type = CompletionChunk

    def __init__(
        self,
        service: CompletionService,
        request: CompletionRequest,
        prompts: Sequence[list[int]],
        client_timeout: float,
    ) -> None:
        super().__init__(service, request, prompts, client_timeout, request.prompt_seeds)
        # Where the text of each choice's next token begins, for the choices that have begun.
        self._offsets: defaultdict[int, int] = defaultdict(int)

    def choice(self, index: int, sample: Sample, text: str, policy: list[PolicySpan]) -> Choice:
        return Choice(text=text, **self._fields(index, sample, policy))

    def choice_chunk(self, chunk: Chunk) -> ChoiceChunk:
        return ChoiceChunk(text=chunk.text, **self._fields(chunk.index, chunk, chunk.policy))

    async def complete(self) -> BaseModel:
        if self.request.echo:
            return await self._echo()
        return await super().complete()

    async def _echo(self) -> BaseModel:
        logprobs, weights, usage = await self.service.score(self.prompts)
        choices = [
            Choice(
                index=index,
                text=self.service.text(prompt),
                logprobs=self._logprobs(index, prompt, [None, *values]),
                finish_reason="length",
                token_ids=self.if_requested([]),
                prompt_token_ids=self.if_requested(prompt),
                policy=[weights.span(len(prompt))],
            )
            for index, (prompt, values) in enumerate(zip(self.prompts, logprobs, strict=True))
        ]
        return Completion(**self.header, choices=choices, usage=usage)

    def _fields(
        self, index: int, tokens: Sample | Chunk, policy: list[PolicySpan]
    ) -> dict[str, Any]:
        is_first = index not in self._offsets
        prompt = self.prompts[index // self.request.n]
        return {
            **self.shared_fields(index, tokens, policy),
            "logprobs": self._logprobs(index, tokens.token_ids, tokens.logprobs),
            "prompt_token_ids": self.if_requested(prompt) if is_first else None,
        }

    def _logprobs(
        self, index: int, token_ids: Sequence[int], values: Sequence[float | None]
    ) -> Logprobs | None:
        texts = self.service.token_texts(token_ids)
        begin = self._offsets[index]
        *offsets, self._offsets[index] = itertools.accumulate(map(len, texts), initial=begin)
        if self.request.logprobs is None:
            return None
        return Logprobs(tokens=texts, token_logprobs=list(values), text_offset=offsets)
