"""An environment whose answers are checked: a wrong one is named, with its problem and its value.

The core uses every environment through this, since what a scorer returns reaches the optimiser. The
author of an environment can use it in tests.
"""

from __future__ import annotations

import math
import numbers
import reprlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, ClassVar, NoReturn

from torchrl_ckpt.plugin_api.environments import Environment, Problem, Score, Split
from torchrl_ckpt.plugin_api.errors import EnvironmentFailed, UserError
from torchrl_ckpt.plugin_api.plugin import PLUGIN_API

# Metrics of an environment and the core's own are columns of one row.
_CORE_METRICS = frozenset({"reward", "completion_tokens", "truncated"})

_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = 200


class CheckedEnvironment:
    """`environment`, called `name` in messages.

    Every method raises `EnvironmentFailed` for what the environment raises (as its cause) and for
    what its contract does not allow. A `UserError` of the environment is raised as it is.
    """

    plugin_api: ClassVar[int] = PLUGIN_API

    def __init__(self, name: str, environment: Environment) -> None:
        self.name = name
        self._environment = environment

    def size(self, split: Split) -> int | None:
        with self._explained(f"size({split!r})"):
            size = self._environment.size(split)
        if size is None:
            return None
        number = _finite_number(size)
        if isinstance(size, bool) or number is None or number != int(number) or number < 0:
            self._refuse(f"size({split!r})", size, "a number of problems, or None for no limit")
        if number == 0 and split == "train":
            raise EnvironmentFailed(f"environment `{self.name}` has no problems to train on")
        return int(number)

    def problem(self, split: Split, index: int) -> Problem:
        call = f"problem({split!r}, {index})"
        with self._explained(call):
            problem = self._environment.problem(split, index)
        if not isinstance(problem, Problem):
            self._refuse(call, problem, "a `Problem`")
        for field in ("id", "answer"):
            if not isinstance(value := getattr(problem, field), str):
                self._refuse(call, value, "a string", field)
        if not problem.id:
            self._refuse(call, problem.id, "a name of the problem", "id")
        if fault := _prompt_fault(problem.prompt):
            expected = f"text, or a list of messages with `role` and `content`: {fault}"
            self._refuse(call, problem.prompt, expected, "prompt")
        if not isinstance(problem.info, Mapping):
            self._refuse(call, problem.info, "a mapping", "info")
        return problem

    def score(self, problem: Problem, completion: str) -> Score:
        """Return the score, with a reward and metrics of type `float`.

        Numbers of Python and numpy, booleans and tensors of one number are accepted.
        """
        call = f"score of problem {_SHORT.repr(problem.id)}"
        scored = f"the completion: {_SHORT.repr(completion)}"
        with self._explained(call, scored):
            score = self._environment.score(problem, completion)
        if not isinstance(score, Score):
            self._refuse(call, score, "a `Score`", more=scored)
        reward = _finite_number(score.reward)
        if reward is None:
            self._refuse(call, score.reward, "a finite number", "reward", scored)
        if not isinstance(score.metrics, Mapping):
            expected = "a mapping of names to numbers"
            self._refuse(call, score.metrics, expected, "metrics", scored)
        metrics: dict[str, float] = {}
        for metric, value in score.metrics.items():
            if not isinstance(metric, str) or not metric or metric in _CORE_METRICS:
                expected = f"a string other than {', '.join(sorted(_CORE_METRICS))} as its name"
                self._refuse(call, metric, expected, "metrics", scored)
            number = _finite_number(value)
            if number is None:
                self._refuse(call, value, "a finite number", f"metrics[{metric!r}]", scored)
            metrics[metric] = number
        return Score(reward, metrics)

    @contextmanager
    def _explained(self, call: str, more: str = "") -> Iterator[None]:
        try:
            yield
        except UserError:
            raise
        except Exception as error:
            text = f"environment `{self.name}` raised {type(error).__name__} in {call}: {error}"
            raise EnvironmentFailed("\n".join(filter(None, (text, more)))) from error

    def _refuse(
        self, call: str, value: object, expected: str, field: str = "", more: str = ""
    ) -> NoReturn:
        where = f" `{field}` = " if field else " "
        given = f"{_SHORT.repr(value)} ({type(value).__name__})"
        text = f"environment `{self.name}`: {call} returned{where}{given}; expected {expected}"
        raise EnvironmentFailed("\n".join(filter(None, (text, more))))


def _finite_number(value: Any) -> float | None:
    """`value` as a float; None unless it is a real, finite number."""
    if getattr(value, "ndim", None) == 0 and hasattr(value, "item"):
        value = value.item()  # A number of numpy or torch.
    if not isinstance(value, numbers.Real):
        return None
    try:
        number = float(value)
    except OverflowError:
        return None
    return number if math.isfinite(number) else None


def _prompt_fault(prompt: object) -> str | None:
    if isinstance(prompt, str):
        return None
    if not isinstance(prompt, Sequence) or isinstance(prompt, bytes):
        return "it is neither"
    if not prompt:
        return "it is empty"
    for number, message in enumerate(prompt):
        if not isinstance(message, Mapping):
            return f"message {number} is not a mapping"
        for key in ("role", "content"):
            if not isinstance(message.get(key), str):
                return f"`{key}` of message {number} is not a string"
    return None
