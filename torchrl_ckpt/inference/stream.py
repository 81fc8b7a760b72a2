"""A completion as it grows: chunks of tokens with their text, up to a stop sequence."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

from torchrl_ckpt.inference.served_policy import EngineWeights, append_span
from torchrl_ckpt.plugin_api.engines import DrawnTokens, Sample
from torchrl_ckpt.plugin_api.models import Tokenizer
from torchrl_ckpt.serving_api.protocol import FinishReason, PolicySpan

_INCOMPLETE = "\ufffd"  # what a tokenizer decodes the first bytes of a character to

TextSample = tuple[Sample, str, list[PolicySpan]]
"""A sample, its text, and its policy spans."""


@dataclass(frozen=True)
class Chunk:
    """Consecutive tokens of the completion numbered `index`, and the text that they add to it.

    Only the last chunk of a completion has a `finish_reason`.
    """

    index: int
    text: str
    token_ids: Sequence[int]
    logprobs: Sequence[float]
    policy: list[PolicySpan]
    finish_reason: FinishReason | None


class GrowingCompletion:
    """Turns the tokens of one completion into chunks, until a stop sequence ends it."""

    def __init__(self, index: int, tokenizer: Tokenizer, stop: Sequence[str]) -> None:
        self._index = index
        self._text = GrowingText(tokenizer, stop)
        self._token_ids: list[int] = []
        self._logprobs: list[float] = []
        self._policy: list[PolicySpan] = []
        self.finished = False

    def add(self, drawn: DrawnTokens, weights: EngineWeights) -> Chunk | None:
        """Add tokens; return a chunk if they make any text certain, else keep them for the next."""
        text = ""
        for token_id, logprob in zip(drawn.token_ids, drawn.logprobs, strict=True):
            if self._text.stopped:
                break
            text += self._text.add(token_id)
            self._token_ids.append(token_id)
            self._logprobs.append(logprob)
            append_span(self._policy, weights.span(1))
        if self._text.stopped:
            return self._chunk(text, "stop")
        return self._chunk(text, None) if text else None

    def finish(self, reason: FinishReason) -> Chunk:
        """Return the last chunk; call it once the engine has drawn all tokens."""
        text = self._text.finish()
        return self._chunk(text, "stop" if self._text.stopped else reason)

    def _chunk(self, text: str, reason: FinishReason | None) -> Chunk:
        self.finished = reason is not None
        chunk = Chunk(self._index, text, self._token_ids, self._logprobs, self._policy, reason)
        self._token_ids, self._logprobs, self._policy = [], [], []
        return chunk


def join_chunks(chunks: Sequence[Chunk]) -> TextSample:
    """Join all chunks of one completion."""
    reason = chunks[-1].finish_reason
    assert reason is not None
    sample = Sample(
        [token for chunk in chunks for token in chunk.token_ids],
        [value for chunk in chunks for value in chunk.logprobs],
        reason,
    )
    policy: list[PolicySpan] = []
    for span in (span for chunk in chunks for span in chunk.policy):
        append_span(policy, span)
    return sample, "".join(chunk.text for chunk in chunks), policy


class GrowingText:
    """Decodes one completion token by token.

    It holds back what the next token may still change: the bytes of an incomplete character, and
    the beginning of what may become one of the `stop` sequences. Released text never changes, and
    its concatenation is the text of all tokens up to the first stop sequence.
    """

    def __init__(self, tokenizer: Tokenizer, stop: Sequence[str]) -> None:
        self._tokenizer = tokenizer
        self._searches = list(map(_Search, stop))
        # A token's text may depend on the token before it (a leading space), so the tokens of the
        # last release are decoded together with the new ones.
        self._last: list[int] = []
        self._new: list[int] = []
        self._held = ""
        self.stopped = False
        """Whether a stop sequence has been reached. No token may be added after that."""

    def add(self, token_id: int) -> str:
        """Add a token and return the text that it makes certain."""
        self._new.append(token_id)
        text = self._decode_new()
        if not text or text.endswith(_INCOMPLETE):
            return ""
        self._last, self._new = self._new, []
        return self._release(text, at_end=False)

    def finish(self) -> str:
        """Return the text that was held back; call it after the last token."""
        text = self._decode_new() if self._new else ""
        return self._release(text, at_end=True)

    def _decode_new(self) -> str:
        before = self._tokenizer.decode(self._last, skip_special_tokens=True)
        both = self._tokenizer.decode(self._last + self._new, skip_special_tokens=True)
        return both[len(before) :]

    def _release(self, new: str, *, at_end: bool) -> str:
        found = [start for each in self._searches if (start := each.add(new)) is not None]
        start_of_new = len(self._held)
        text, self._held = self._held + new, ""
        if found:
            self.stopped = True
            return text[: start_of_new + min(found)]
        if at_end:
            return text
        certain = len(text) - max((each.num_matched for each in self._searches), default=0)
        self._held = text[certain:]
        return text[:certain]


class _Search:
    """Looks for the word `word` in a text that grows.

    The algorithm of Knuth, Morris and Pratt (1977): its time is proportional to the text's length,
    whatever the word. `num_matched`: how many characters at the end of the text so far are the
    beginning of the word.
    """

    def __init__(self, word: str) -> None:
        self._word = word
        self.num_matched = 0

    def add(self, new: str) -> int | None:
        """Add to the text; return where the word's first occurrence begins, counted from the begin
        of what was added, hence negative for one that began earlier. None without one."""
        if self.num_matched == 0 and self._word[0] not in new:
            return None
        borders = _borders(self._word)
        for index, character in enumerate(new):
            self.num_matched = _longer(self._word, borders, self.num_matched, character)
            if self.num_matched == len(self._word):
                return index + 1 - len(self._word)
        return None


@lru_cache(maxsize=128)  # All completions of a request look for the same words.
def _borders(word: str) -> list[int]:
    """Return for each n how many characters of `word[:n + 1]` are both its begin and its end, at
    most n of them."""
    borders = [0]
    for character in word[1:]:
        borders.append(_longer(word, borders, borders[-1], character))
    return borders


def _longer(word: str, borders: Sequence[int], num_matched: int, character: str) -> int:
    """Return how much of the begin of `word` a text ends with once `character` is added to it."""
    while num_matched and character != word[num_matched]:
        num_matched = borders[num_matched - 1]
    return num_matched + (character == word[num_matched])
