"""A completion in pieces, as its tokens are drawn, or in one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torchrl_ckpt.contracts import DrawnTokens, Tokenizer
from torchrl_ckpt.exchange.completions import FinishReason, PolicySpan
from torchrl_ckpt.inference.serving import Load, append_span
from torchrl_ckpt.inference.text import GrowingText


@dataclass(frozen=True)
class Piece:
    """Some of the completion numbered `sample` of a prompt, both counted from 0.

    The tokens are those that make `text`; the last piece alone has a `finish_reason`.
    """

    prompt: int
    sample: int
    text: str
    token_ids: Sequence[int]
    logprobs: Sequence[float]
    policy: list[PolicySpan]
    finish_reason: FinishReason | None


class GrowingCompletion:
    """Turns one completion's tokens into pieces, until a stop sequence ends it."""

    def __init__(self, prompt: int, sample: int, tokenizer: Tokenizer, stop: Sequence[str]) -> None:
        self._prompt = prompt
        self._sample = sample
        self._text = GrowingText(tokenizer, stop)
        self._token_ids: list[int] = []
        self._logprobs: list[float] = []
        self._policy: list[PolicySpan] = []
        self.finished = False

    def add(self, drawn: DrawnTokens, load: Load) -> Piece | None:
        """What the tokens add, if any text has become certain; their text comes later if not."""
        text = ""
        for token_id, logprob in zip(drawn.token_ids, drawn.logprobs, strict=True):
            if self._text.stopped:
                break
            text += self._text.add(token_id)
            self._token_ids.append(token_id)
            self._logprobs.append(logprob)
            append_span(self._policy, load.span(1))
        if self._text.stopped:
            return self._piece(text, "stop")
        return self._piece(text, None) if text else None

    def finish(self, reason: FinishReason) -> Piece:
        """The last piece, once the engine has drawn all that it will."""
        text = self._text.finish()
        return self._piece(text, "stop" if self._text.stopped else reason)

    def _piece(self, text: str, reason: FinishReason | None) -> Piece:
        self.finished = reason is not None
        piece = Piece(
            prompt=self._prompt,
            sample=self._sample,
            text=text,
            token_ids=self._token_ids,
            logprobs=self._logprobs,
            policy=self._policy,
            finish_reason=reason,
        )
        self._token_ids, self._logprobs, self._policy = [], [], []
        return piece


def joined(pieces: Sequence[Piece]) -> Piece:
    """All the pieces of one completion as one."""
    policy: list[PolicySpan] = []
    for span in (span for piece in pieces for span in piece.policy):
        append_span(policy, span)
    return Piece(
        prompt=pieces[0].prompt,
        sample=pieces[0].sample,
        text="".join(piece.text for piece in pieces),
        token_ids=[token for piece in pieces for token in piece.token_ids],
        logprobs=[value for piece in pieces for value in piece.logprobs],
        policy=policy,
        finish_reason=pieces[-1].finish_reason,
    )
