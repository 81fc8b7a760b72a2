"""Problems as prompts of tokens, each with room for a completion."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from torchrl_ckpt.config.length_limit import LengthLimit
from torchrl_ckpt.plugin_api.checked_environment import CheckedEnvironment
from torchrl_ckpt.plugin_api.environments import Problem, Split
from torchrl_ckpt.plugin_api.errors import DataError
from torchrl_ckpt.plugin_api.models import Tokenizer
from torchrl_ckpt.plugin_api.plugin import Message
from torchrl_ckpt.run.progress import Finding

# Longer than this is not worth waiting for: what is left is checked when it is drawn.
_CHECK_SECONDS = 10.0


@dataclass(frozen=True)
class Prompt:
    """Problem `index` of a split, and its prompt's tokens up to where the completion starts."""

    problem: Problem
    index: int
    token_ids: list[int]


class Prompts:
    """Tokenizes the problems of `environment`.

    `limits` are the largest numbers of tokens of prompt and completion together in each split.
    Methods raise `DataError` for a prompt that cannot be tokenized, or leaves no room for a
    completion of `max_tokens`.
    """

    def __init__(
        self,
        environment: CheckedEnvironment,
        tokenizer: Tokenizer,
        limits: Mapping[Split, LengthLimit | None],
    ) -> None:
        self._environment = environment
        self._tokenizer = tokenizer
        self._limits = limits

    def take(self, split: Split, indices: Iterable[int], *, max_tokens: int) -> list[Prompt]:
        """Return the prompts at `indices`."""
        prompts = [self._prompt(split, index) for index in indices]
        lengths = {prompt.index: len(prompt.token_ids) for prompt in prompts}
        self._check_room(split, lengths, max_tokens)
        return prompts

    def check(self, split: Split, count: int, *, max_tokens: int) -> Finding:
        """Check the first `count` problems, for ten seconds at most; return what they are."""
        lengths: dict[int, int] = {}
        deadline = time.monotonic() + _CHECK_SECONDS
        for index in range(count):
            lengths[index] = len(self._prompt(split, index).token_ids)
            if time.monotonic() > deadline:
                break
        self._check_room(split, lengths, max_tokens)
        checked = f"{len(lengths):,}" if len(lengths) == count else f"{len(lengths):,} of {count:,}"
        found = f"{checked} problems ({split}): prompts of "
        found += f"{min(lengths.values()):,} to {max(lengths.values()):,} tokens"
        if len(lengths) < count:
            found += f"; stopped after {_CHECK_SECONDS:.0f} s, the others are checked when drawn"
        return Finding(found)

    def _prompt(self, split: Split, index: int) -> Prompt:
        problem = self._environment.problem(split, index)
        try:
            token_ids = self._token_ids(problem.prompt)
        except Exception as error:  # of a chat template, which may do anything
            raise DataError(
                f"{self._named(problem.id, split, index)}: its prompt cannot be tokenized: "
                f"{type(error).__name__}: {error}"
            ) from error
        if not token_ids:
            raise DataError(f"{self._named(problem.id, split, index)}: its prompt has no tokens")
        return Prompt(problem, index, token_ids)

    def _token_ids(self, prompt: str | Sequence[Message]) -> list[int]:
        if isinstance(prompt, str):
            return self._tokenizer.encode(prompt, add_special_tokens=False)
        return list(
            self._tokenizer.apply_chat_template(
                prompt, tokenize=True, add_generation_prompt=True, return_dict=False
            )
        )

    def _check_room(self, split: Split, lengths: Mapping[int, int], max_tokens: int) -> None:
        """`lengths` are those of prompts, by the index of the problem."""
        limit = self._limits[split]
        if limit is None:
            return
        too_long = [
            index for index, length in lengths.items() if length + max_tokens > limit.tokens
        ]
        if not too_long:
            return
        worst = max(too_long, key=lambda index: lengths[index])
        length = lengths[worst]
        problem = self._environment.problem(split, worst)
        more = (
            f"{len(too_long):,} of {len(lengths):,} prompts are too long. "
            if len(lengths) > 1
            else ""
        )
        raise DataError(
            f"{self._named(problem.id, split, worst)}: its prompt of {length:,} tokens and "
            f"`sampling.max_tokens` = {max_tokens:,} make {length + max_tokens:,} tokens; the "
            f"limit is {limit}. {more}Lower `sampling.max_tokens`, raise the limit, or have the "
            "environment leave such problems out"
        )

    def _named(self, problem: str, split: Split, index: int) -> str:
        return f"environment `{self._environment.name}`, problem {problem!r} ({split} {index})"
