"""`POST /v1/chat/completions`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from fastapi import APIRouter, Depends, Request
from pydantic import BaseModel

from torchrl_ckpt.inference.bodies import parsed_body
from torchrl_ckpt.inference.completion_service import CompletionService
from torchrl_ckpt.inference.http_errors import BadRequest
from torchrl_ckpt.inference.responder import Responder
from torchrl_ckpt.inference.side_thread import SideThread
from torchrl_ckpt.inference.sse import EventStream
from torchrl_ckpt.inference.stream import Chunk
from torchrl_ckpt.plugin_api.engines import Sample
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
    PolicySpan,
)


def chat_routes(
    service: CompletionService, side_thread: SideThread, client_timeout: float
) -> APIRouter:
    """Return the route that chats with `service`."""
    router = APIRouter()
    parsed = Depends(parsed_body(ChatCompletionRequest, side_thread))

    @router.post("/v1/chat/completions", response_model=ChatCompletion)
    async def chat(
        http_request: Request, request: ChatCompletionRequest = parsed
    ) -> BaseModel | EventStream:
        service.check_model(request.model)
        messages = [_with_plain_text(message) for message in request.messages]
        prompts = [await service.encode_chat(messages, request)]
        return await ChatResponder(service, request, prompts, client_timeout).respond(
            http_request.receive
        )

    return router


class ChatResponder(Responder[ChatCompletionRequest]):
    """Completes the conversation of the request by the assistant's turn."""

    id_prefix = "chatcmpl"
    response_type = ChatCompletion
    chunk_type = ChatCompletionChunk

    def choice(self, index: int, sample: Sample, text: str, policy: list[PolicySpan]) -> ChatChoice:
        return ChatChoice(
            message=ChatMessage(content=text),
            logprobs=self._logprobs(sample),
            prompt_token_ids=self.if_requested(self.prompts[0]),
            **self.shared_fields(index, sample, policy),
        )

    def choice_chunk(self, chunk: Chunk) -> ChatChoiceChunk:
        return ChatChoiceChunk(
            delta=ChatDelta(content=chunk.text),
            logprobs=self._logprobs(chunk),
            prompt_token_ids=None,
            **self.shared_fields(chunk.index, chunk, chunk.policy),
        )

    def opening(self) -> Sequence[ChatChoiceChunk]:
        """Return a chunk with the role for each choice, in order: OpenAI's client relies on it."""
        return [
            ChatChoiceChunk(
                index=index,
                delta=ChatDelta(role="assistant", content=""),
                logprobs=None,
                finish_reason=None,
                token_ids=self.if_requested([]),
                prompt_token_ids=self.if_requested(self.prompts[0]),
                policy=[],
            )
            for index in range(self.request.n)
        ]

    def _logprobs(self, tokens: Sample | Chunk) -> ChatLogprobs | None:
        if not self.request.logprobs:
            return None
        texts = self.service.token_texts(tokens.token_ids)
        return ChatLogprobs(
            content=[
                ChatTokenLogprob(token=text, logprob=value, bytes=list(text.encode()))
                for text, value in zip(texts, tokens.logprobs, strict=True)
            ]
        )


def _with_plain_text(message: Mapping[str, Any]) -> Mapping[str, Any]:
    """Join the text parts of the message. Raises `BadRequest` for parts of other types."""
    parts = message.get("content")
    if not isinstance(parts, list):
        return message
    for part in parts:
        if not (isinstance(part, dict) and isinstance(part.get("text"), str)):
            raise BadRequest("a message may have parts of type `text` only", "messages")
    return {**message, "content": "".join(part["text"] for part in parts)}
