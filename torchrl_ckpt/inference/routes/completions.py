"""`POST /v1/completions`."""

from __future__ import annotations

import itertools
import secrets
import time
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from fastapi import APIRouter, Request

from torchrl_ckpt.inference.cancel import unless_gone
from torchrl_ckpt.inference.completion_service import CompletionService
from torchrl_ckpt.inference.sse import Emit, EventStream
from torchrl_ckpt.inference.stream import Piece
from torchrl_ckpt.serving_api.protocol import (
    Choice,
    ChoiceChunk,
    Completion,
    CompletionChunk,
    CompletionRequest,
    Logprobs,
)


def completion_routes(generator: CompletionService) -> APIRouter:
    """The route on `generator`."""
    router = APIRouter()

    @router.post("/v1/completions", response_model=Completion)
    async def complete(request: CompletionRequest, http: Request) -> Completion | EventStream:
        generator.check_model(request.model)
        answer = _Answer(generator, request)
        if request.stream:
            return EventStream(answer.stream)
        return await unless_gone(http.receive, answer.whole())

    return router


class _Answer:
    """The answer to one request, in one or in pieces."""

    def __init__(self, generator: CompletionService, request: CompletionRequest) -> None:
        self._generator = generator
        self._request = request
        self._prompts = [
            generator.encode(prompt) if isinstance(prompt, str) else prompt
            for prompt in request.prompts
        ]
        self._about = {
            "id": f"cmpl-{secrets.token_hex(12)}",
            "created": int(time.time()),
            "model": generator.model_name,
        }
        self._offsets: defaultdict[int, int] = defaultdict(int)  # where a choice's next text begins

    async def whole(self) -> Completion:
        request = self._request
        if request.echo:
            generated = await self._generator.score(self._prompts)
        else:
            generated = await self._generator.generate(self._prompts, request, request.prompt_seeds)
        choices = [Choice(**self._choice(piece)) for piece in generated.completions]
        return Completion(**self._about, choices=choices, usage=generated.usage)

    async def stream(self, emit: Emit) -> None:
        def on_piece(piece: Piece) -> None:
            emit(CompletionChunk(**self._about, choices=[ChoiceChunk(**self._choice(piece))]))

        request = self._request
        generated = await self._generator.generate(
            self._prompts, request, request.prompt_seeds, on_piece
        )
        if request.include_usage:
            emit(CompletionChunk(**self._about, choices=[], usage=generated.usage))

    def _choice(self, piece: Piece) -> dict[str, Any]:
        """The fields of a choice or of what a chunk adds to one."""
        index = piece.prompt * self._request.n + piece.sample
        ids = self._request.return_token_ids
        new = [] if self._request.echo else piece.token_ids
        first = index not in self._offsets
        return {
            "index": index,
            "text": piece.text,
            "logprobs": self._logprobs(index, piece),
            "finish_reason": piece.finish_reason,
            "token_ids": list(new) if ids else None,
            "prompt_token_ids": self._prompts[piece.prompt] if ids and first else None,
            "policy": piece.policy,
        }

    def _logprobs(self, index: int, piece: Piece) -> Logprobs | None:
        texts = self._generator.token_texts(piece.token_ids)
        begin = self._offsets[index]
        *offsets, self._offsets[index] = itertools.accumulate(map(len, texts), initial=begin)
        if self._request.logprobs is None:
            return None
        values: Sequence[float | None] = piece.logprobs
        if self._request.echo:
            values = [None, *values]
        return Logprobs(tokens=texts, token_logprobs=list(values), text_offset=offsets)
