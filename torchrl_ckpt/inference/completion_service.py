"""From a request's fields to the engine and back, the same for completions and chat."""

from __future__ import annotations

import asyncio
import functools
import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torchrl_ckpt.inference.cancel import Interrupted, unless
from torchrl_ckpt.inference.http_errors import BadRequest, NotFound
from torchrl_ckpt.inference.limits import Admission
from torchrl_ckpt.inference.served_policy import EngineWeights, ServedPolicy, Stamped
from torchrl_ckpt.inference.stream import GrowingCompletion, Piece, joined
from torchrl_ckpt.plugin_api.engines import DrawnTokens, GenerationRequest, Sampling
from torchrl_ckpt.plugin_api.models import Tokenizer
from torchrl_ckpt.serving_api.protocol import ChatCompletionRequest, CompletionRequest, Usage

Request = CompletionRequest | ChatCompletionRequest
OnPiece = Callable[[Piece], None]


@dataclass(frozen=True)
class Generated:
    """What became of a request: whole completions, by prompt and then by sample."""

    completions: list[Piece]
    usage: Usage


class CompletionService:
    """The served policy with its tokenizer and its name."""

    def __init__(
        self,
        policy: ServedPolicy,
        tokenizer: Tokenizer,
        admission: Admission,
        *,
        model_name: str,
        max_sequences: int,
        on_usage: Callable[[Usage], None],
    ) -> None:
        self._tokenizer = tokenizer
        self.model_name = model_name
        self._policy = policy
        self._admission = admission
        self._max_sequences = max_sequences
        self._on_usage = on_usage
        self._token_text = functools.cache(lambda token: tokenizer.decode([token]))

    def check_model(self, name: str | None) -> None:
        """Raises `NotFound` where the request names another model than the served one."""
        if name not in (None, self.model_name):
            raise NotFound(f"there is no model {name!r} here, only {self.model_name!r}", "model")

    async def generate(
        self,
        prompts: Sequence[Sequence[int]],
        request: Request,
        seeds: Sequence[int] | None = None,
        on_piece: OnPiece | None = None,
    ) -> Generated:
        """Sample from the prompts; the tokenizer's end token ends a completion besides others.

        Without `seeds` they follow from the request's seed, or chance. `on_piece` is given the
        completions as they grow. Raises `BadRequest`, `TooManyRequests` and `WeightsUnknown`.
        """
        generation = self._generation(prompts, request, seeds)
        async with self._admission.place():
            try:
                if on_piece is None and not request.stop:
                    groups = await self._policy.generate(generation)
                    completions = self._whole(groups)
                else:
                    completions = await self._grow(generation, request.stop, on_piece)
            except ValueError as error:
                raise BadRequest(str(error)) from error
        return Generated(completions, self._usage(prompts, completions))

    async def score(self, sequences: Sequence[Sequence[int]]) -> Generated:
        """The sequences themselves with the log-probabilities of all tokens but the first.

        Raises as `generate` does.
        """
        self._check_number(len(sequences))
        async with self._admission.place():
            try:
                scores, load = await self._policy.score(sequences)
            except ValueError as error:
                raise BadRequest(str(error)) from error
        echoes = [
            Piece(
                prompt=i,
                sample=0,
                text=self.text(tokens),
                token_ids=tokens,
                logprobs=values,
                policy=[load.span(len(tokens))],
                finish_reason="length",
            )
            for i, (tokens, values) in enumerate(zip(sequences, scores, strict=True))
        ]
        return Generated(echoes, self._usage(sequences, []))

    def encode(self, text: str) -> list[int]:
        """The tokens of a prompt. Tokenizers raise what they like. Raises `BadRequest`."""
        try:
            return self._tokenizer.encode(text)
        except Exception as error:
            raise BadRequest(f"the tokenizer refuses this text: {error}", "prompt") from error

    def encode_chat(self, messages: Sequence[Mapping[str, Any]]) -> list[int]:
        """The messages as the tokenizer's chat template puts them. Templates raise what they like.
        Raises `BadRequest`."""
        try:
            return self._tokenizer.apply_chat_template(
                messages, tokenize=True, add_generation_prompt=True, return_dict=False
            )
        except Exception as error:
            raise BadRequest(
                f"the chat template refuses these messages: {error}", "messages"
            ) from error

    def text(self, token_ids: Sequence[int]) -> str:
        """What a person reads: without end token and the like."""
        return self._tokenizer.decode(token_ids, skip_special_tokens=True)

    def token_texts(self, token_ids: Sequence[int]) -> list[str]:
        """Each token by itself, special ones too."""
        return [self._token_text(token) for token in token_ids]

    def _generation(
        self, prompts: Sequence[Sequence[int]], request: Request, seeds: Sequence[int] | None
    ) -> GenerationRequest:
        self._check_number(len(prompts) * request.n)
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

    def _check_number(self, num_sequences: int) -> None:
        if num_sequences > self._max_sequences:
            raise BadRequest(
                f"{num_sequences} sequences in one request are more than {self._max_sequences} "
                "(`inference.max_sequences`)",
                "n",
            )

    def _whole(self, groups: Sequence[Sequence[Stamped]]) -> list[Piece]:
        return [
            Piece(
                prompt=prompt,
                sample=number,
                text=self.text(one.sample.token_ids),
                token_ids=one.sample.token_ids,
                logprobs=one.sample.logprobs,
                policy=one.policy,
                finish_reason=one.sample.finish_reason,
            )
            for prompt, group in enumerate(groups)
            for number, one in enumerate(group)
        ]

    async def _grow(
        self, generation: GenerationRequest, stop: Sequence[str], on_piece: OnPiece | None
    ) -> list[Piece]:
        """Each completion up to its stop sequence; the engine's work ends with the last one's."""
        growing = {
            (prompt, number): GrowingCompletion(prompt, number, self._tokenizer, stop)
            for prompt in range(len(generation.prompts))
            for number in range(generation.num_samples)
        }
        pieces: dict[tuple[int, int], list[Piece]] = {key: [] for key in growing}
        num_growing = len(growing)
        all_stopped = asyncio.get_running_loop().create_future()

        def put(piece: Piece) -> None:
            nonlocal num_growing
            pieces[piece.prompt, piece.sample].append(piece)
            num_growing -= piece.finish_reason is not None
            if num_growing == 0 and not all_stopped.done():
                all_stopped.set_result(None)
            if on_piece is not None:
                on_piece(piece)

        def grow(drawn: DrawnTokens, weights: EngineWeights) -> None:
            completion = growing[drawn.prompt, drawn.sample]
            if not completion.finished and (piece := completion.add(drawn, weights)) is not None:
                put(piece)

        try:
            groups = await unless(all_stopped, self._policy.generate(generation, grow))
        except Interrupted:
            groups = []
        for prompt, group in enumerate(groups):
            for number, one in enumerate(group):
                if not growing[prompt, number].finished:
                    put(growing[prompt, number].finish(one.sample.finish_reason))
        return [joined(pieces[key]) for key in growing]

    def _usage(self, prompts: Sequence[Sequence[int]], completions: Sequence[Piece]) -> Usage:
        read = sum(map(len, prompts))
        written = sum(len(completion.token_ids) for completion in completions)
        usage = Usage(prompt_tokens=read, completion_tokens=written, total_tokens=read + written)
        self._on_usage(usage)
        return usage
