"""A prompt that leaves no room for its completion is found, and named, before it is sent."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from tests.support.tiny_model import tiny_model
from torchrl_ckpt.config.inference import InferenceConfig
from torchrl_ckpt.config.length_limit import LengthLimit, model_limit, server_limit, smallest
from torchrl_ckpt.orchestrator.advantages import share_without_signal
from torchrl_ckpt.orchestrator.prompts import Prompts
from torchrl_ckpt.plugin_api.checked_environment import CheckedEnvironment
from torchrl_ckpt.plugin_api.environments import Problem, Score, Split
from torchrl_ckpt.plugin_api.errors import DataError

TOKENIZER = tiny_model().tokenizer()
LIMIT = LengthLimit(10, "`trainer.packing.length`")


class Words:
    """An environment with a prompt for each word; a word of None has a chat prompt of its own."""

    plugin_api = 1

    def __init__(self, words: Sequence[Any]) -> None:
        self._words = words

    def size(self, split: Split) -> int:
        return len(self._words)

    def problem(self, split: Split, index: int) -> Problem:
        return Problem(f"word {index}", self._words[index], answer="ba")

    def score(self, problem: Problem, completion: str) -> Score:
        raise NotImplementedError


def prompts_of(*words: Any, tokenizer: Any = TOKENIZER) -> Prompts:
    environment = CheckedEnvironment("acme", Words(words))
    return Prompts(environment, tokenizer, {"train": LIMIT, "eval": None})


def test_a_prompt_that_just_leaves_room_is_taken() -> None:
    (prompt,) = prompts_of("abcde>").take("train", [0], max_tokens=4)
    assert len(prompt.token_ids) == 6
    assert prompt.problem.id == "word 0"


def test_a_prompt_too_long_names_environment_problem_and_numbers() -> None:
    with pytest.raises(DataError) as caught:
        prompts_of("ab>", "abcdef>").take("train", [0, 1], max_tokens=4)
    assert str(caught.value) == (
        "environment `acme`, problem 'word 1' (train 1): its prompt of 7 tokens and "
        "`sampling.max_tokens` = 4 make 11 tokens; the limit is 10 tokens "
        "(`trainer.packing.length`). 1 of 2 prompts are too long. Lower `sampling.max_tokens`, "
        "raise the limit, or have the environment leave such problems out"
    )


def test_the_check_names_the_longest_of_all_that_are_too_long() -> None:
    prompts = prompts_of("abcdefg>", "ab>", "abcdefghi>", "ab>")
    with pytest.raises(DataError, match=r"'word 2' \(train 2\).* 2 of 4 prompts are too long"):
        prompts.check("train", 4, max_tokens=4)
    # What is only evaluated needs no room in a row of the trainer.
    found = prompts.check("eval", 4, max_tokens=4)
    assert found.text == "4 problems (eval): prompts of 3 to 10 tokens"


def test_a_prompt_without_tokens_is_named() -> None:
    with pytest.raises(DataError, match=r"`acme`, problem 'word 0'.* has no tokens"):
        prompts_of("").check("train", 1, max_tokens=4)


def test_a_conversation_that_the_template_refuses_is_named() -> None:
    tokenizer = tiny_model().tokenizer()
    tokenizer.chat_template = "{{ raise_exception('no system turns') }}"
    turn = [{"role": "user", "content": "ab"}]
    with pytest.raises(DataError, match=r"`acme`, problem 'word 0'.* no system turns"):
        prompts_of(turn, tokenizer=tokenizer).take("train", [0], max_tokens=1)


def test_the_smallest_limit_counts() -> None:
    config = InferenceConfig(output_dir=".", model={"type": "toy"}, max_length=100)  # type: ignore[arg-type]
    limits = [model_limit(tiny_model()), server_limit(config), None]
    assert smallest(*limits) == LengthLimit(100, "`inference.max_length`")
    assert smallest(limits[0], LIMIT) == LIMIT
    assert str(limits[0]) == "128 tokens (what the model can take)"
    assert smallest(None) is None


def test_groups_of_equal_rewards_are_without_signal() -> None:
    assert share_without_signal([0.1, 0.1, 0.1, 0.5, 0.5, 0.6], 3) == 0.5
    assert share_without_signal([0.0] * 4, 2) == 1.0
