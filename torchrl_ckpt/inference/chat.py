"""`POST /v1/chat/completions`."""

from __future__ import annotations

import secrets
import time

from fastapi import APIRouter

from torchrl_ckpt.contracts import Sample
from torchrl_ckpt.exchange.completions import (
    ChatChoice,
    ChatCompletion,
    ChatCompletionRequest,
    ChatLogprobs,
    ChatMessage,
    ChatTokenLogprob,
)
from torchrl_ckpt.inference.failures import BadRequest
from torchrl_ckpt.inference.generating import Generator


def chat_routes(generator: Generator) -> APIRouter:
    """The route on `generator`."""
    router = APIRouter()

    @router.post("/v1/chat/completions")
    async def chat(request: ChatCompletionRequest) -> ChatCompletion:
        generator.check_model(request.model)
        prompt = _prompt(generator, request)
        generated = await generator.generate([prompt], request)
        return ChatCompletion(
            id=f"chatcmpl-{secrets.token_hex(12)}",
            created=int(time.time()),
            model=generator.model_name,
            choices=[
                ChatChoice(
                    index=index,
                    message=ChatMessage(content=generator.text(sample.token_ids)),
                    logprobs=_logprobs(generator, sample) if request.logprobs else None,
                    finish_reason=sample.finish_reason,
                    token_ids=list(sample.token_ids) if request.return_token_ids else None,
                    prompt_token_ids=prompt if request.return_token_ids else None,
                    policy_version=generated.policy_version,
                )
                for index, sample in enumerate(generated.samples[0])
            ],
            usage=generated.usage,
        )

    return router


def _prompt(generator: Generator, request: ChatCompletionRequest) -> list[int]:
    """The messages as the tokenizer's chat template puts them. Templates raise what they like."""
    try:
        return generator.tokenizer.apply_chat_template(
            request.messages, tokenize=True, add_generation_prompt=True, return_dict=False
        )
    except Exception as error:
        raise BadRequest(
            f"the chat template refuses these messages: {error}", "messages"
        ) from error


def _logprobs(generator: Generator, sample: Sample) -> ChatLogprobs:
    texts = generator.token_texts(sample.token_ids)
    return ChatLogprobs(
        content=[
            ChatTokenLogprob(token=text, logprob=value, bytes=list(text.encode()))
            for text, value in zip(texts, sample.logprobs, strict=True)
        ]
    )
