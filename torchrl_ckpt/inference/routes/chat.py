"""`POST /v1/chat/completions`."""

from __future__ import annotations

import secrets
import time
from collections.abc import Mapping
from typing import Any

from fastapi import APIRouter, Request

from torchrl_ckpt.inference.cancel import unless_gone
from torchrl_ckpt.inference.completion_service import CompletionService
from torchrl_ckpt.inference.http_errors import BadRequest
from torchrl_ckpt.inference.sse import Emit, EventStream
from torchrl_ckpt.inference.stream import Piece
from torchrl_ckpt.serving_api.protocol import (
    ChatChoice,
    ChatChoiceChunk,
    ChatCompletion,
    ChatCompletionChunk,
    ChatCompletionRequest,
    ChatDelta,
    ChatLogprobs,
    ChatMessage,
    ChatTokenLogprob,
)


def chat_routes(generator: CompletionService) -> APIRouter:
    """The route on `generator`."""
    router = APIRouter()

    @router.post("/v1/chat/completions", response_model=ChatCompletion)
    async def chat(request: ChatCompletionRequest, http: Request) -> ChatCompletion | EventStream:
        generator.check_model(request.model)
        answer = _Answer(generator, request)
        if request.stream:
            return EventStream(answer.stream)
        return await unless_gone(http.receive, answer.whole())

    return router


class _Answer:
    """The answer to one request, in one or in pieces."""

    def __init__(self, generator: CompletionService, request: ChatCompletionRequest) -> None:
        self._generator = generator
        self._request = request
        self._prompt = generator.encode_chat([_plain(message) for message in request.messages])
        self._about = {
            "id": f"chatcmpl-{secrets.token_hex(12)}",
            "created": int(time.time()),
            "model": generator.model_name,
        }
        self._opened = False

    async def whole(self) -> ChatCompletion:
        generated = await self._generator.generate([self._prompt], self._request)
        choices = [
            ChatChoice(
                message=ChatMessage(content=piece.text),
                prompt_token_ids=self._prompt if self._request.return_token_ids else None,
                **self._choice(piece),
            )
            for piece in generated.completions
        ]
        return ChatCompletion(**self._about, choices=choices, usage=generated.usage)

    async def stream(self, emit: Emit) -> None:
        def on_piece(piece: Piece) -> None:
            if not self._opened:
                self._open(emit)
            delta = ChatDelta(content=piece.text)
            choice = ChatChoiceChunk(delta=delta, prompt_token_ids=None, **self._choice(piece))
            emit(ChatCompletionChunk(**self._about, choices=[choice]))

        request = self._request
        generated = await self._generator.generate([self._prompt], request, on_piece=on_piece)
        if request.include_usage:
            emit(ChatCompletionChunk(**self._about, choices=[], usage=generated.usage))

    def _open(self, emit: Emit) -> None:
        """Say of each choice, in order, whose turn it is: OpenAI's client counts on that."""
        self._opened = True
        for index in range(self._request.n):
            choice = ChatChoiceChunk(
                index=index,
                delta=ChatDelta(role="assistant", content=""),
                logprobs=None,
                finish_reason=None,
                token_ids=[] if self._request.return_token_ids else None,
                prompt_token_ids=self._prompt if self._request.return_token_ids else None,
                policy=[],
            )
            emit(ChatCompletionChunk(**self._about, choices=[choice]))

    def _choice(self, piece: Piece) -> dict[str, Any]:
        """What choices and chunks have in common."""
        return {
            "index": piece.sample,
            "logprobs": self._logprobs(piece) if self._request.logprobs else None,
            "finish_reason": piece.finish_reason,
            "token_ids": list(piece.token_ids) if self._request.return_token_ids else None,
            "policy": piece.policy,
        }

    def _logprobs(self, piece: Piece) -> ChatLogprobs:
        texts = self._generator.token_texts(piece.token_ids)
        return ChatLogprobs(
            content=[
                ChatTokenLogprob(token=text, logprob=value, bytes=list(text.encode()))
                for text, value in zip(texts, piece.logprobs, strict=True)
            ]
        )


def _plain(message: Mapping[str, Any]) -> Mapping[str, Any]:
    """The message with its text in one, where it comes in parts."""
    parts = message.get("content")
    if not isinstance(parts, list):
        return message
    content = ""
    for part in parts:
        if not (isinstance(part, dict) and isinstance(part.get("text"), str)):
            raise BadRequest("a message may have parts of type `text` only", "messages")
        content += part["text"]
    return {**message, "content": content}
