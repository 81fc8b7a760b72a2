"""Environment plugins: problems by number, and the score of a completion."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, Protocol

from torchrl_ckpt.plugin_api.plugin import Json, Message, Plugin

if TYPE_CHECKING:
    pass


@dataclass(frozen=True)
class Problem:
    """A task for the model. `prompt` is text as it stands or chat messages.

    `answer` is what a perfect model would say (without the end token): supervised fine-tuning on
    an environment learns it. `info` is the environment's own, plain JSON.
    """

    id: str
    prompt: str | Sequence[Message]
    answer: str
    info: Mapping[str, Json] = field(default_factory=dict)


@dataclass(frozen=True)
class Score:
    """`reward` is what training raises; `metrics` are only shown."""

    reward: float
    metrics: Mapping[str, float] = field(default_factory=dict)


Split = Literal["train", "eval"]


class Environment(Plugin, Protocol):
    """Problems by number, and the score of a completion.

    A problem is a pure function of its number. The stream's order, its epochs and its place in a
    checkpoint are the core's affair, so no environment can skip or repeat a problem on resume.
    """

    def size(self, split: Split) -> int | None:
        """How many problems there are; None for as many as one asks for."""
        ...

    def problem(self, split: Split, index: int) -> Problem: ...

    def score(self, problem: Problem, completion: str) -> Score:
        """A pure function: of the same completion always the same score."""
        ...
