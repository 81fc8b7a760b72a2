"""A completion in pieces, as its tokens are drawn, or in one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torchrl_ckpt.inference.served_policy import EngineWeights, append_span
from torchrl_ckpt.plugin_api.engines import DrawnTokens
from torchrl_ckpt.plugin_api.models import Tokenizer
from torchrl_ckpt.serving_api.protocol import FinishReason, PolicySpan


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

    def add(self, drawn: DrawnTokens, weights: EngineWeights) -> Piece | None:
        """What the tokens add, if any text has become certain; their text comes later if not."""
        text = ""
        for token_id, logprob in zip(drawn.token_ids, drawn.logprobs, strict=True):
            if self._text.stopped:
                break
            text += self._text.add(token_id)
            self._token_ids.append(token_id)
            self._logprobs.append(logprob)
            append_span(self._policy, weights.span(1))
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


_INCOMPLETE = "\ufffd"  # what a tokenizer makes of the first bytes of a character


class GrowingText:
    """The text of one completion.

    It holds back what the next token may still change: the bytes of a character that is not whole
    yet, and the beginning of what may become one of the `stop` sequences. What is given out is
    never taken back, and all of it together is the text of all the tokens, up to the first stop
    sequence.
    """

    def __init__(self, tokenizer: Tokenizer, stop: Sequence[str]) -> None:
        self._tokenizer = tokenizer
        self._stop = stop
        # A token's text may depend on the one before it (a space at the beginning), so the tokens
        # of the last piece are decoded together with the new ones.
        self._last: list[int] = []
        self._new: list[int] = []
        self._held = ""
        self.stopped = False
        """Whether a stop sequence has come. Nothing is to be added then."""

    def add(self, token_id: int) -> str:
        """The text that is certain now and was not before."""
        self._new.append(token_id)
        text = self._decode_new()
        if not text or text.endswith(_INCOMPLETE):
            return ""
        self._last, self._new = self._new, []
        return self._release(text, at_end=False)

    def finish(self) -> str:
        """The text that was held back, for there are no more tokens."""
        text = self._decode_new() if self._new else ""
        return self._release(text, at_end=True)

    def _decode_new(self) -> str:
        before = self._tokenizer.decode(self._last, skip_special_tokens=True)
        both = self._tokenizer.decode(self._last + self._new, skip_special_tokens=True)
        return both[len(before) :]

    def _release(self, new: str, *, at_end: bool) -> str:
        text, self._held = self._held + new, ""
        begins = [begin for stop in self._stop if (begin := text.find(stop)) >= 0]
        if begins:
            self.stopped = True
            return text[: min(begins)]
        if at_end:
            return text
        certain = len(text) - max((_overlap(text, stop) for stop in self._stop), default=0)
        self._held = text[certain:]
        return text[:certain]


def _overlap(text: str, stop: str) -> int:
    """How many characters at the end of `text` are the beginning of `stop`."""
    longest = min(len(text), len(stop) - 1)
    return next((n for n in range(longest, 0, -1) if text.endswith(stop[:n])), 0)
