"""Growing text: whole characters, no retraction, and an end at the first stop sequence."""

from __future__ import annotations

import pytest
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


def grow(tokenizer: PreTrainedTokenizerFast, token_ids: list[int], *stop: str) -> list[str]:
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


def test_only_what_may_become_a_stop_sequence_is_held_back(
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    token_ids = [token for char in "xaaxab" for token in tokenizer.encode(char)]
    assert grow(tokenizer, token_ids, "ab") == ["x", "", "a", "ax", "", ""]
