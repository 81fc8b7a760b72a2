"""Text of tokens that come one by one: whole characters, up to where a stop sequence begins."""

from __future__ import annotations

from collections.abc import Sequence

from torchrl_ckpt.contracts import Tokenizer

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
