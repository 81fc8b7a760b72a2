"""Samples of supervised fine-tuning: conversations and prompts with completions, tokenized."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from torchrl_ckpt.plugin_api.environments import Environment
from torchrl_ckpt.plugin_api.errors import DataError
from torchrl_ckpt.plugin_api.models import Tokenizer
from torchrl_ckpt.trainer.packing import TrainSample


class FileSamples:
    """The lines of JSON Lines files, tokenized on access. Raises `DataError` for a bad line."""

    def __init__(self, files: Sequence[Path], tokenizer: Tokenizer) -> None:
        self._records = [record for path in files for record in _records(path)]
        self._tokenizer = tokenizer

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: int) -> TrainSample:
        record = self._records[index]
        if "messages" in record:
            return conversation(self._tokenizer, record["messages"])
        return completion(self._tokenizer, record["prompt"], record["completion"])


class EnvironmentSamples:
    """The training problems of an environment with their answers.

    Raises `DataError` for an environment without a fixed number of problems.
    """

    def __init__(self, environment: Environment, tokenizer: Tokenizer) -> None:
        size = environment.size("train")
        if size is None:
            raise DataError(
                "this environment has no fixed number of problems; `data.environment` needs one "
                "that has"
            )
        self._size = size
        self._environment = environment
        self._tokenizer = tokenizer

    def __len__(self) -> int:
        return self._size

    def __getitem__(self, index: int) -> TrainSample:
        problem = self._environment.problem("train", index)
        if isinstance(problem.prompt, str):
            return completion(self._tokenizer, problem.prompt, problem.answer)
        answer = {"role": "assistant", "content": problem.answer}
        return conversation(self._tokenizer, [*problem.prompt, answer])


def completion(tokenizer: Tokenizer, prompt: str, answer: str) -> TrainSample:
    """Make a sample whose targets are `answer` and the end token after it."""
    before = tokenizer.encode(prompt, add_special_tokens=False)
    after = [*tokenizer.encode(answer, add_special_tokens=False), tokenizer.eos_token_id]
    return TrainSample(before + after, [False] * len(before) + [True] * len(after))


def conversation(tokenizer: Tokenizer, messages: Sequence[Mapping[str, Any]]) -> TrainSample:
    """Make a sample whose targets are the assistant's turns, each with its end as in the template.

    A turn is what the rendered template gains by it, without the generation prompt. This works with
    every template that renders earlier turns the same whatever follows; else it raises `DataError`.
    """
    token_ids: list[int] = []
    learned: list[bool] = []
    for count, message in enumerate(messages, start=1):
        is_answer = message["role"] == "assistant"
        if is_answer:
            prompt = _render(tokenizer, messages[: count - 1], add_generation_prompt=True)
            token_ids, learned = _extend(token_ids, learned, prompt, learn=False)
        rendered = _render(tokenizer, messages[:count], add_generation_prompt=False)
        token_ids, learned = _extend(token_ids, learned, rendered, learn=is_answer)
    return TrainSample(token_ids, learned)


def _render(
    tokenizer: Tokenizer, messages: Sequence[Mapping[str, Any]], **options: Any
) -> list[int]:
    return list(
        tokenizer.apply_chat_template(messages, tokenize=True, return_dict=False, **options)
        if messages or options["add_generation_prompt"]
        else []
    )


def _extend(
    token_ids: list[int], learned: list[bool], extended: list[int], *, learn: bool
) -> tuple[list[int], list[bool]]:
    if extended[: len(token_ids)] != token_ids:
        raise DataError(
            "the tokenizer's chat template renders earlier turns differently once later ones "
            "follow, so the assistant's tokens cannot be identified; split the conversations into "
            "single turns"
        )
    return extended, learned + [learn] * (len(extended) - len(token_ids))


def _records(path: Path) -> Iterator[Mapping[str, Any]]:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"cannot read the data file {path}: {error}") from None
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except json.JSONDecodeError as error:
            raise DataError(f"{path}:{number}: this line is not JSON: {error}") from None
        if fault := _fault(record):
            raise DataError(f"{path}:{number}: {fault}")
        yield record


def _fault(record: Any) -> str | None:
    if not isinstance(record, dict):
        return "a sample must be a JSON object"
    if "messages" in record:
        turns = record["messages"]
        if not isinstance(turns, list) or not all(
            isinstance(turn, dict) and {"role", "content"} <= turn.keys() for turn in turns
        ):
            return "`messages` must be a list of objects with `role` and `content`"
        if not any(turn["role"] == "assistant" for turn in turns):
            return "no message has the role `assistant`, so there is nothing to learn"
        return None
    for key in ("prompt", "completion"):
        if not isinstance(record.get(key), str):
            return f"`{key}` must be a string (or give `messages`); found {sorted(record)}"
    return None
