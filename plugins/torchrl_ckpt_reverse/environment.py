"""The environment `reverse_text`: spell a word backwards."""

from __future__ import annotations

import random
import re
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from torchrl_ckpt.plugin_api.environments import Problem, Score, Split
from torchrl_ckpt.plugin_api.errors import DataError
from torchrl_ckpt_reverse.subsequence import longest_common_subsequence

_HELD_OUT = 10


class ReverseTextConfig(BaseModel):
    """Options of `reverse_text`."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    text: Path
    """A text file. Its distinct words, in lower case, are the problems."""

    min_letters: Annotated[int, Field(ge=1)] = 2
    """Ignore shorter words."""

    max_letters: Annotated[int, Field(ge=1)] = 8
    """Ignore longer words."""

    separator: str = ">"
    """The text between a word and its reverse."""


class ReverseText:
    """Words to spell backwards; a tenth of the words is held out for evaluation.

    The reward is 2 LCS / (len + len) of completion and answer, between 0 and 1, where LCS is the
    length of their longest common subsequence. Metric: `exact`, 1 if they are equal, else 0.
    """

    plugin_api = 1
    Config = ReverseTextConfig

    def __init__(self, config: ReverseTextConfig) -> None:
        self._config = config
        words = _words(config)
        # The held-out words depend on the text alone and must not change with the seed.
        random.Random("held out").shuffle(words)
        held_out = max(1, len(words) // _HELD_OUT)
        self._splits: dict[Split, list[str]] = {
            "eval": words[:held_out],
            "train": words[held_out:],
        }

    def size(self, split: Split) -> int:
        return len(self._splits[split])

    def problem(self, split: Split, index: int) -> Problem:
        word = self._splits[split][index]
        return Problem(id=word, prompt=word + self._config.separator, answer=word[::-1])

    def score(self, problem: Problem, completion: str) -> Score:
        common = longest_common_subsequence(completion, problem.answer)
        reward = 2 * common / (len(completion) + len(problem.answer))
        return Score(reward, {"exact": float(completion == problem.answer)})


def _words(config: ReverseTextConfig) -> list[str]:
    try:
        text = config.text.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"reverse_text cannot read {config.text}: {error}") from None
    letters = range(config.min_letters, config.max_letters + 1)
    words = sorted({word for word in re.findall(r"[a-z]+", text.lower()) if len(word) in letters})
    if len(words) < 2:
        raise DataError(
            f"{config.text} has {len(words)} words of {config.min_letters} to "
            f"{config.max_letters} letters (a to z); reverse_text needs at least two"
        )
    return words
