"""What an environment returns is checked; the error names environment, problem and value."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch

from torchrl_ckpt.plugin_api.checked_environment import CheckedEnvironment
from torchrl_ckpt.plugin_api.environments import Problem, Score, Split
from torchrl_ckpt.plugin_api.errors import DataError, EnvironmentFailed

GOOD = Problem(id="word 7", prompt="ab>", answer="ba")
GOOD_SCORE = Score(1.0)


@dataclass
class Answers:
    """An environment that returns what it is given, or raises it."""

    size_: Any = 3
    problem_: Any = GOOD
    score_: Any = GOOD_SCORE

    plugin_api = 1

    def size(self, split: Split) -> Any:
        return self._give(self.size_)

    def problem(self, split: Split, index: int) -> Any:
        return self._give(self.problem_)

    def score(self, problem: Problem, completion: str) -> Any:
        return self._give(self.score_)

    def _give(self, answer: Any) -> Any:
        if isinstance(answer, Exception):
            raise answer
        return answer


def checked(**answers: Any) -> CheckedEnvironment:
    return CheckedEnvironment("acme", Answers(**answers))


def score_error(score: Any, completion: str = "ba") -> str:
    with pytest.raises(EnvironmentFailed) as caught:
        checked(score_=score).score(GOOD, completion)
    assert caught.value.exit_code == 2
    return str(caught.value)


@pytest.mark.parametrize(
    "reward",
    [
        *(1, True, 1.0, np.float32(1), np.int64(1), np.bool_(1), np.array(1.0), Fraction(1)),
        torch.tensor(1.0),
    ],
)
def test_every_sort_of_number_is_a_reward_and_a_metric(reward: Any) -> None:
    score = checked(score_=Score(reward, {"exact": reward})).score(GOOD, "ba")
    assert (score.reward, score.metrics) == (1.0, {"exact": 1.0})
    assert type(score.reward) is type(score.metrics["exact"]) is float


@pytest.mark.parametrize(
    ("reward", "shown"),
    [
        (float("nan"), "nan (float)"),
        (float("-inf"), "-inf (float)"),
        (np.float32("nan"), "nan"),
        (None, "None (NoneType)"),
        ("1.0", "'1.0' (str)"),
        (1j, "1j (complex)"),
        (10**400, "(int)"),
        ([1.0], "[1.0] (list)"),
    ],
)
def test_a_reward_that_is_no_finite_number_is_named_with_problem_and_completion(
    reward: Any, shown: str
) -> None:
    message = score_error(Score(reward))
    assert message.startswith("environment `acme`: score of problem 'word 7' returned `reward` = ")
    assert shown in message
    assert "expected a finite number" in message
    assert "the completion: 'ba'" in message


@pytest.mark.parametrize(
    ("metrics", "shown"),
    [
        ({"exact": float("nan")}, "`metrics['exact']` = nan (float)"),
        ({"exact": None}, "`metrics['exact']` = None (NoneType)"),
        ({3: 1.0}, "`metrics` = 3 (int)"),
        ({"reward": 1.0}, "`metrics` = 'reward' (str); expected a string other than"),
        ([("exact", 1.0)], "expected a mapping"),
    ],
)
def test_a_metric_that_cannot_be_logged_is_named(metrics: Any, shown: str) -> None:
    assert shown in score_error(Score(1.0, metrics))


@pytest.mark.parametrize(("score", "shown"), [(0.5, "0.5 (float)"), (None, "None (NoneType)")])
def test_a_score_of_another_type_is_named(score: Any, shown: str) -> None:
    assert f"returned {shown}; expected a `Score`" in score_error(score)


def test_what_a_scorer_raises_is_shown_with_problem_and_completion_and_stays_the_cause() -> None:
    fault = KeyError("answer")
    with pytest.raises(EnvironmentFailed) as caught:
        checked(score_=fault).score(GOOD, "ba")
    assert str(caught.value) == (
        "environment `acme` raised KeyError in score of problem 'word 7': 'answer'\n"
        "the completion: 'ba'"
    )
    assert caught.value.__cause__ is fault


def test_a_mistake_that_an_environment_explains_itself_is_passed_on() -> None:
    with pytest.raises(DataError, match=r"words\.txt is empty"):
        checked(problem_=DataError("words.txt is empty")).problem("train", 0)


def test_long_values_are_shortened() -> None:
    assert len(score_error(Score("x" * 10_000), "y" * 10_000)) < 1_000


MESSAGE: Mapping[str, Any] = {"role": "user", "content": "ab"}


@pytest.mark.parametrize(
    ("problem", "words"),
    [
        ("ab>", ["'ab>' (str)", "a `Problem`"]),
        (replace(GOOD, id=7), ["`id` = 7 (int)", "a string"]),  # type: ignore[arg-type]
        (replace(GOOD, id=""), ["`id` = ''"]),
        (replace(GOOD, answer=None), ["`answer` = None"]),  # type: ignore[arg-type]
        (replace(GOOD, prompt=None), ["`prompt` = None", "it is neither"]),  # type: ignore[arg-type]
        (replace(GOOD, prompt=b"ab"), ["`prompt` = b'ab'"]),  # type: ignore[arg-type]
        (replace(GOOD, prompt=[]), ["it is empty"]),
        (replace(GOOD, prompt=[MESSAGE, "b"]), ["message 1 is not a mapping"]),  # type: ignore[list-item]
        (replace(GOOD, prompt=[{"role": "user"}]), ["`content` of message 0 is not a string"]),
        (replace(GOOD, info=[1]), ["`info` = [1]"]),  # type: ignore[arg-type]
        (IndexError("list index out of range"), ["raised IndexError", "list index out of range"]),
    ],
)
def test_a_problem_that_cannot_be_posed_is_named(problem: Any, words: list[str]) -> None:
    with pytest.raises(EnvironmentFailed) as caught:
        checked(problem_=problem).problem("eval", 4)
    for word in ["`acme`", "problem('eval', 4)", *words]:
        assert word in str(caught.value)


@pytest.mark.parametrize("prompt", ["ab>", "", [MESSAGE], (MESSAGE, MESSAGE)])
def test_a_prompt_is_text_or_messages(prompt: Any) -> None:
    problem = replace(GOOD, prompt=prompt)
    assert checked(problem_=problem).problem("train", 0) is problem


@pytest.mark.parametrize("size", [-1, 2.5, "3", True, float("nan")])
def test_a_size_that_is_no_number_of_problems_is_named(size: Any) -> None:
    with pytest.raises(EnvironmentFailed, match=r"size\('train'\) returned .*number of problems"):
        checked(size_=size).size("train")


def test_an_environment_without_problems_cannot_be_trained_on() -> None:
    with pytest.raises(EnvironmentFailed, match="`acme` has no problems to train on"):
        checked(size_=0).size("train")
    assert checked(size_=0).size("eval") == 0
    assert checked(size_=None).size("train") is None
    assert checked(size_=np.int64(3)).size("train") == 3
