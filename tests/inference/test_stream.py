"""Growing text: whole characters, no retraction, and an end at the first stop sequence."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from torchrl_ckpt.inference.stream import GrowingText

TEXTS = [
    "plain words, and more of them",
    "héllo wörld",
    "日本語のテキスト",
    "a 👩‍👩‍👧 family and a flag 🇳🇿",
    "",
    " leading and trailing ",
]


@pytest.fixture(scope="module", name="tokenizer")
def train_tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level tokenizer, like most: a character may take several tokens."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=300, initial_alphabet=alphabet, special_tokens=["<end>"], show_progress=False
    )
    backend.train_from_iterator(["the words of a text and more of them"] * 10, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<end>")


class Letters:
    """A tokenizer of one letter a token."""

    def decode(self, token_ids: Sequence[int], *, skip_special_tokens: bool) -> str:
        return "".join(map(chr, token_ids))


def grow(tokenizer: Any, token_ids: list[int], *stop: str) -> list[str]:
    """Return the text that is released after each token, and at the end."""
    text = GrowingText(tokenizer, stop)
    released = []
    for token_id in token_ids:
        released.append(text.add(token_id))
        if text.stopped:
            return released
    return [*released, text.finish()]


@pytest.mark.parametrize("text", TEXTS)
def test_the_released_parts_are_the_text(text: str, tokenizer: PreTrainedTokenizerFast) -> None:
    token_ids = [*tokenizer.encode(text), tokenizer.eos_token_id]
    parts = grow(tokenizer, token_ids)
    assert "".join(parts) == text == tokenizer.decode(token_ids, skip_special_tokens=True)


@pytest.mark.parametrize("text", TEXTS)
def test_no_part_has_an_incomplete_character(text: str, tokenizer: PreTrainedTokenizerFast) -> None:
    assert "\ufffd" not in "".join(grow(tokenizer, tokenizer.encode(text)))
    assert not any("\ufffd" in part for part in grow(tokenizer, tokenizer.encode(text)))


def test_an_incomplete_character_shows_only_at_the_end(
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    token_ids = tokenizer.encode("ab 🎉")[:-1]
    *parts, last = grow(tokenizer, token_ids)
    assert "".join(parts) == "ab "
    assert last == tokenizer.decode(token_ids)[3:] == "\ufffd"


@pytest.mark.parametrize(
    ("text", "stop", "expected"),
    [
        ("one two three", ["two"], "one "),
        ("one two three", ["three", "two"], "one "),
        ("one two three", ["o"], ""),
        ("one two three", ["four"], "one two three"),
        ("aaab", ["aab"], "a"),
        ("abcabd", ["abd"], "abc"),
        ("one tw", ["two"], "one tw"),
        ("line\n\nnext", ["\n\n"], "line"),
        ("日本語のテキスト", ["の"], "日本語"),
        ("party 🎉 over", ["🎉"], "party "),
    ],
)
def test_text_from_the_stop_sequence_on_is_never_released(
    text: str, stop: list[str], expected: str, tokenizer: PreTrainedTokenizerFast
) -> None:
    assert "".join(grow(tokenizer, tokenizer.encode(text), *stop)) == expected


@given(st.text("ab", max_size=40), st.lists(st.text("ab", min_size=1, max_size=12), max_size=3))
def test_any_stop_sequences_end_a_text_where_they_begin(text: str, stop: list[str]) -> None:
    released = "".join(grow(Letters(), [ord(character) for character in text], *stop))
    # Letter by letter, as it grows: the first letter that completes any of them ends it.
    ends = (n for n in range(len(text) + 1) if any(word in text[:n] for word in stop))
    if (end := next(ends, None)) is None:
        assert released == text
    else:
        assert released == text[: min(text.find(word) for word in stop if word in text[:end])]


def test_only_what_may_become_a_stop_sequence_is_held_back(
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    token_ids = [token for char in "xaaxab" for token in tokenizer.encode(char)]
    assert grow(tokenizer, token_ids, "ab") == ["x", "", "a", "ax", "", ""]
