"""Answers one request for completions, whole or as a stream: what both routes share."""

from __future__ import annotations

import secrets
import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar, Generic, TypeVar

from pydantic import BaseModel
from starlette.types import Receive

from torchrl_ckpt.inference.cancel import cancel_on_disconnect
from torchrl_ckpt.inference.completion_service import CompletionService
from torchrl_ckpt.inference.sse import EventStream, Outbox
from torchrl_ckpt.inference.stream import Chunk
from torchrl_ckpt.plugin_api.engines import Sample
from torchrl_ckpt.serving_api.protocol import (
    ChatCompletionRequest,
    CompletionRequest,
    PolicySpan,
)

Request = TypeVar("Request", bound=CompletionRequest | ChatCompletionRequest)


class Responder(ABC, Generic[Request]):
    """The response to `request`, in the form that a subclass gives its choices.

    `prompts` are those of the request, as tokens. `client_timeout` (seconds) bounds the reading of
    a stream's end. `seeds` are one for each prompt; None leaves them to the service.
    """

    id_prefix: ClassVar[str]
    response_type: ClassVar[type[BaseModel]]
    chunk_type: ClassVar[type[BaseModel]]

    def __init__(
        self,
        service: CompletionService,
        request: Request,
        prompts: Sequence[list[int]],
        client_timeout: float,
        seeds: Sequence[int] | None = None,
    ) -> None:
        self.service = service
        self.request = request
        self.prompts = prompts
        self._client_timeout = client_timeout
        self._seeds = seeds
        self.header = {
            "id": f"{self.id_prefix}-{secrets.token_hex(12)}",
            "created": int(time.time()),
            "model": service.model_name,
        }

    async def respond(self, receive: Receive) -> BaseModel | EventStream:
        """Return the response, streamed if the request has `stream`.

        The request's body must have been read from `receive`. Raises `ClientDisconnected`, and as
        `CompletionService.complete` does.
        """
        if self.request.stream:
            return EventStream(self._stream, client_timeout=self._client_timeout)
        return await cancel_on_disconnect(receive, self.complete())

    @abstractmethod
    def choice(self, index: int, sample: Sample, text: str, policy: list[PolicySpan]) -> BaseModel:
        """Return completion `index` as a choice."""

    @abstractmethod
    def choice_chunk(self, chunk: Chunk) -> BaseModel:
        """Return what `chunk` adds to a choice."""

    def opening(self) -> Sequence[BaseModel]:
        """Return the chunks that a stream sends before the first tokens."""
        return ()

    def shared_fields(
        self, index: int, tokens: Sample | Chunk, policy: list[PolicySpan]
    ) -> dict[str, Any]:
        """Return the fields that choices and their chunks share on both routes."""
        return {
            "index": index,
            "finish_reason": tokens.finish_reason,
            "token_ids": self.if_requested(tokens.token_ids),
            "policy": policy,
        }

    def if_requested(self, token_ids: Sequence[int]) -> list[int] | None:
        """Return `token_ids` if the request has `return_token_ids`, else None."""
        return list(token_ids) if self.request.return_token_ids else None

    async def complete(self) -> BaseModel:
        """Return the whole response."""
        completions, usage = await self.service.complete(self.prompts, self.request, self._seeds)
        choices = [self.choice(index, *completion) for index, completion in enumerate(completions)]
        return self.response_type(**self.header, choices=choices, usage=usage)

    async def _stream(self, outbox: Outbox) -> None:
        opened = False

        def emit_choice(choice: BaseModel) -> None:
            outbox.put(self.chunk_type(**self.header, choices=[choice]))

        def on_chunk(chunk: Chunk) -> None:
            nonlocal opened
            if not opened:
                opened = True
                for choice in self.opening():
                    emit_choice(choice)
            emit_choice(self.choice_chunk(chunk))

        usage = await self.service.stream(
            self.prompts, self.request, self._seeds, on_chunk, outbox.emptied
        )
        if self.request.include_usage:
            outbox.put(self.chunk_type(**self.header, choices=[], usage=usage))
