"""Generates and scores for the HTTP routes: tokenization, sampling parameters, admission, usage."""

from __future__ import annotations

import asyncio
import functools
import math
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any, Literal

from torchrl_ckpt.inference.admission import Admission
from torchrl_ckpt.inference.cancel import Interrupted, cancel_when
from torchrl_ckpt.inference.http_errors import BadRequest, NotFinite, NotFound
from torchrl_ckpt.inference.served_policy import EngineWeights, ServedPolicy
from torchrl_ckpt.inference.side_thread import SideThread
from torchrl_ckpt.inference.stream import Chunk, GrowingCompletion, TextSample, join_chunks
from torchrl_ckpt.plugin_api.engines import DrawnTokens, GenerationRequest, Sampling
from torchrl_ckpt.plugin_api.models import Tokenizer
from torchrl_ckpt.serving_api.protocol import ChatCompletionRequest, CompletionRequest, Usage

Request = CompletionRequest | ChatCompletionRequest

Unit = Literal["tokens", "messages", "characters"]
"""What the length of a prompt is counted in before it is tokenized."""

# No known vocabulary has a token of more characters.
_MAX_CHARACTERS_PER_TOKEN = 128

_NOT_FINITE = (
    "the log-probabilities that the engine has computed are not finite (NaN or infinite): look at "
    "the weights that were loaded, and at the engine's dtype"
)


class CompletionService:
    """The served policy with its tokenizer and its model name, for completions and chat alike.

    Completions are numbered by prompt, then by sample. `on_usage` is called with the tokens of
    every answered request.
    """

    def __init__(
        self,
        policy: ServedPolicy,
        tokenizer: Tokenizer,
        admission: Admission,
        side_thread: SideThread,
        *,
        model_name: str,
        max_sequences: int,
        on_usage: Callable[[Usage], None],
    ) -> None:
        self.model_name = model_name
        self._policy = policy
        self._tokenizer = tokenizer
        self._admission = admission
        self._side_thread = side_thread
        self._max_sequences = max_sequences
        self._on_usage = on_usage
        self._token_text = functools.cache(lambda token: tokenizer.decode([token]))

    def check_model(self, name: str | None) -> None:
        """Raise `NotFound` if the request names another model than the served one."""
        if name not in (None, self.model_name):
            raise NotFound(f"there is no model {name!r} here, only {self.model_name!r}", "model")

    async def complete(
        self,
        prompts: Sequence[Sequence[int]],
        request: Request,
        seeds: Sequence[int] | None = None,
    ) -> tuple[list[TextSample], Usage]:
        """Generate whole completions of the prompts.

        Besides the request's stop tokens, the tokenizer's end token ends a completion. `seeds` are
        one for each prompt; None derives them from the request's seed, or from chance. Raises
        `BadRequest`, `TooManyRequests`, `EngineDied` and `WeightsUnknown`.
        """
        if request.stop:
            chunks: list[list[Chunk]] = [[] for _ in range(len(prompts) * request.n)]
            usage = await self.stream(
                prompts, request, seeds, lambda chunk: chunks[chunk.index].append(chunk)
            )
            return [join_chunks(part) for part in chunks], usage
        generation = self._generation_request(prompts, request, seeds)
        async with self._admitted():
            samples = await self._policy.generate(generation)
            for sample, _ in samples:
                _check_finite(sample.logprobs)
            completions = [
                (sample, self.text(sample.token_ids), policy) for sample, policy in samples
            ]
        num_completed = sum(len(sample.token_ids) for sample, _ in samples)
        return completions, self._count_usage(prompts, num_completed)

    async def stream(
        self,
        prompts: Sequence[Sequence[int]],
        request: Request,
        seeds: Sequence[int] | None,
        on_chunk: Callable[[Chunk], None],
        emptied: Callable[[], Awaitable[None]] | None = None,
    ) -> Usage:
        """Generate as `complete` does, and call `on_chunk` with each chunk of a completion.

        Each completion ends at its first stop sequence, and the engine's work with the last
        completion. The request keeps its place until `emptied` returns: what it has generated is
        in memory until the client has read it.
        """
        generation = self._generation_request(prompts, request, seeds)
        completions = [
            GrowingCompletion(index, self._tokenizer, request.stop)
            for index in range(len(prompts) * request.n)
        ]
        num_growing, num_completed = len(completions), 0
        all_stopped = asyncio.get_running_loop().create_future()

        def emit(chunk: Chunk) -> None:
            nonlocal num_growing, num_completed
            num_completed += len(chunk.token_ids)
            num_growing -= chunk.finish_reason is not None
            if num_growing == 0 and not all_stopped.done():
                all_stopped.set_result(None)
            on_chunk(chunk)

        def grow(drawn: DrawnTokens, weights: EngineWeights) -> None:
            if not _are_finite(drawn.logprobs):
                if not all_stopped.done():
                    all_stopped.set_exception(NotFinite(_NOT_FINITE))
                return
            completion = completions[drawn.prompt * request.n + drawn.sample]
            if not completion.finished and (chunk := completion.add(drawn, weights)) is not None:
                emit(chunk)

        async with self._admitted():
            try:
                try:
                    generating = self._policy.generate(generation, grow)
                    samples = await cancel_when(all_stopped, generating)
                except Interrupted:
                    samples = []  # every completion has finished
                    all_stopped.result()
                for completion, (sample, _) in zip(completions, samples, strict=False):
                    if not completion.finished:
                        emit(completion.finish(sample.finish_reason))
            finally:
                if emptied is not None:
                    await emptied()
        return self._count_usage(prompts, num_completed)

    async def score(
        self, sequences: Sequence[Sequence[int]]
    ) -> tuple[list[list[float]], EngineWeights, Usage]:
        """Return the log-probabilities of all tokens but the first of each sequence, and the
        weights that computed them.

        Raises as `complete` does.
        """
        self._check_num_sequences(len(sequences))
        async with self._admitted():
            logprobs, weights = await self._policy.score(sequences)
            for values in logprobs:
                _check_finite(values)
        return logprobs, weights, self._count_usage(sequences, 0)

    async def encode(self, request: CompletionRequest) -> list[list[int]]:
        """Return the request's prompts as tokens.

        Raises `BadRequest` for too many prompts, for one that is too long, and for whatever the
        tokenizer raises.
        """
        self._check_num_sequences(len(request.prompts) * request.n)
        for prompt in request.prompts:
            unit: Unit = "characters" if isinstance(prompt, str) else "tokens"
            self._check_length(len(prompt), unit, request.max_tokens)
        return [
            await self._encode(prompt) if isinstance(prompt, str) else prompt
            for prompt in request.prompts
        ]

    async def encode_chat(
        self, messages: Sequence[Mapping[str, Any]], request: ChatCompletionRequest
    ) -> list[int]:
        """Return the messages as tokens, formatted by the tokenizer's chat template.

        Raises `BadRequest` for messages that are too long, and for whatever the template raises.
        """
        self._check_num_sequences(request.n)
        self._check_length(len(messages), "messages", request.max_tokens)
        num_characters = sum(
            len(text) for message in messages for text in message.values() if isinstance(text, str)
        )
        self._check_length(num_characters, "characters", request.max_tokens)
        try:
            return await self._side_thread.run(
                lambda: self._tokenizer.apply_chat_template(
                    messages, tokenize=True, add_generation_prompt=True, return_dict=False
                ),
                size=num_characters,
            )
        except Exception as error:
            raise BadRequest(
                f"the chat template refuses these messages: {error}", "messages"
            ) from error

    def text(self, token_ids: Sequence[int]) -> str:
        """Decode the tokens without special tokens, such as the end token."""
        return self._tokenizer.decode(token_ids, skip_special_tokens=True)

    def token_texts(self, token_ids: Sequence[int]) -> list[str]:
        """Decode each token by itself, special tokens included."""
        return [self._token_text(token) for token in token_ids]

    async def _encode(self, text: str) -> list[int]:
        try:
            return await self._side_thread.run(lambda: self._tokenizer.encode(text), size=len(text))
        except Exception as error:
            raise BadRequest(f"the tokenizer refuses this text: {error}", "prompt") from error

    def _check_length(self, length: int, unit: Unit, max_tokens: int) -> None:
        """Raise `BadRequest` for a prompt that cannot fit, before any work. A message makes at
        least one token."""
        longest = self._policy.engine.max_length
        if longest is None:
            return
        limit = longest * _MAX_CHARACTERS_PER_TOKEN if unit == "characters" else longest
        if length + max_tokens > limit:
            raise BadRequest(
                f"a prompt of {length} {unit} and {max_tokens} new tokens exceed the maximum "
                f"length of {longest} tokens"
            )

    @asynccontextmanager
    async def _admitted(self) -> AsyncIterator[None]:
        """Run the block once the request is admitted; turn `ValueError` into `BadRequest`."""
        async with self._admission.admit():
            try:
                yield
            except ValueError as error:
                raise BadRequest(str(error)) from error

    def _generation_request(
        self, prompts: Sequence[Sequence[int]], request: Request, seeds: Sequence[int] | None
    ) -> GenerationRequest:
        self._check_num_sequences(len(prompts) * request.n)
        if seeds is None:
            first = secrets.randbits(64) if request.seed is None else request.seed
            seeds = [(first + i) % 2**64 for i in range(len(prompts))]
        sampling = Sampling(
            max_tokens=request.max_tokens,
            temperature=request.temperature,
            top_p=request.top_p,
            top_k=request.top_k,
            stop_token_ids=tuple({*request.stop_token_ids, self._tokenizer.eos_token_id}),
        )
        return GenerationRequest(prompts, seeds, request.n, sampling)

    def _check_num_sequences(self, num_sequences: int) -> None:
        if num_sequences > self._max_sequences:
            raise BadRequest(
                f"{num_sequences} sequences in one request exceed the limit of "
                f"{self._max_sequences} (`inference.max_sequences`)",
                "n",
            )

    def _count_usage(self, prompts: Sequence[Sequence[int]], num_completed: int) -> Usage:
        num_prompt = sum(map(len, prompts))
        usage = Usage(
            prompt_tokens=num_prompt,
            completion_tokens=num_completed,
            total_tokens=num_prompt + num_completed,
        )
        self._on_usage(usage)
        return usage


def _are_finite(logprobs: Sequence[float]) -> bool:
    return math.isfinite(sum(logprobs))  # A sum with a NaN or an infinity is not finite.


def _check_finite(logprobs: Sequence[float]) -> None:
    if not _are_finite(logprobs):
        raise NotFinite(_NOT_FINITE)
