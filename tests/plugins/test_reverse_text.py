"""`reverse_text` makes problems of the words of any text and holds out a tenth of them."""

from __future__ import annotations

from pathlib import Path

import pytest
from torchrl_ckpt_reverse.environment import ReverseText, ReverseTextConfig

from torchrl_ckpt.plugin_api.errors import DataError

WORDS = Path(__file__).parents[2] / "recipes/reverse/words.txt"


def problem_ids(environment: ReverseText, split: str) -> set[str]:
    return {environment.problem(split, i).id for i in range(environment.size(split))}  # type: ignore[arg-type]


def test_the_shipped_words_are_two_thousand_and_a_tenth_is_held_out() -> None:
    environment = ReverseText(ReverseTextConfig(text=WORDS))
    train, held_out = problem_ids(environment, "train"), problem_ids(environment, "eval")
    assert (len(train), len(held_out)) == (1800, 200)
    assert not train & held_out
    assert all(2 <= len(word) <= 8 for word in train | held_out)


def test_any_text_can_be_used(tmp_path: Path) -> None:
    text = tmp_path / "poem.txt"
    text.write_text("The cat; the CAT, and a dog -- unbelievable!")
    environment = ReverseText(ReverseTextConfig(text=text))
    assert problem_ids(environment, "train") | problem_ids(environment, "eval") == {
        "the", "cat", "and", "dog",
    }  # fmt: skip


def test_the_reward_counts_the_letters_in_the_right_order() -> None:
    environment = ReverseText(ReverseTextConfig(text=WORDS))
    problem = environment.problem("train", 0)
    assert problem.answer == problem.id[::-1]
    assert environment.score(problem, problem.answer).reward == 1.0
    assert environment.score(problem, "").reward == 0.0
    half = environment.score(problem, problem.answer[:2])
    assert half.reward == pytest.approx(4 / (2 + len(problem.answer)))
    assert half.metrics == {"exact": 0.0}


def test_a_text_without_words_is_an_error_that_says_what_is_needed(tmp_path: Path) -> None:
    empty = tmp_path / "empty.txt"
    empty.write_text("1 2 3")
    with pytest.raises(DataError, match=r"empty\.txt has 0 words of 2 to 8 letters"):
        ReverseText(ReverseTextConfig(text=empty))
    with pytest.raises(DataError, match=r"cannot read .*nowhere"):
        ReverseText(ReverseTextConfig(text=tmp_path / "nowhere"))
