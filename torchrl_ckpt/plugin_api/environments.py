"""Environment plugins: numbered problems, and scores of completions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

from torchrl_ckpt.plugin_api.plugin import Json, Message, Plugin


@dataclass(frozen=True)
class Problem:
    """A task for the model. `prompt` is plain text or chat messages.

    `answer` is the ideal completion, without the end token: the target of supervised fine-tuning.
    `info` is plain JSON for the environment's own use.
    """

    id: str
    prompt: str | Sequence[Message]
    answer: str
    info: Mapping[str, Json] = field(default_factory=dict)


@dataclass(frozen=True)
class Score:
    """The score of a completion: training maximises `reward`; `metrics` are only logged.

    All are finite numbers: an error in scoring must be raised, not scored. A metric is called
    neither `reward` nor `completion_tokens` nor `truncated`, and averaged over the scores that have
    it.
    """

    reward: float
    metrics: Mapping[str, float] = field(default_factory=dict)


Split = Literal["train", "eval"]


class Environment(Plugin, Protocol):
    """Provides numbered problems and scores completions.

    A problem is a pure function of its number. The core keeps the order, the epochs and the stream
    position in a checkpoint, so an environment cannot skip or repeat a problem on resume.
    """

    def size(self, split: Split) -> int | None:
        """Return the number of problems; None if there is no limit."""
        ...

    def problem(self, split: Split, index: int) -> Problem:
        """Return problem `index`, counted from 0."""
        ...

    def score(self, problem: Problem, completion: str) -> Score:
        """Score `completion`, a pure function of both arguments."""
        ...
