"""Samples of supervised fine-tuning: conversations and prompts with completions, tokenized."""

from __future__ import annotations

import bisect
import itertools
import json
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

from torchrl_ckpt.plugin_api.checked_environment import CheckedEnvironment
from torchrl_ckpt.plugin_api.environments import Problem
from torchrl_ckpt.plugin_api.errors import DataError
from torchrl_ckpt.plugin_api.models import Tokenizer
from torchrl_ckpt.trainer.data_file import DataFile
from torchrl_ckpt.trainer.packing import TrainSample

# Chat templates take any role; with most of them a misspelled one would be learned in silence.
_ROLES = ("system", "developer", "user", "assistant", "tool")


class DataSet(Protocol):
    """Samples as they are given, of known number, each with a name for messages."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> TrainSample:
        """Return a sample. Raises `DataError`, which names it, where it cannot be used."""
        ...

    def origin(self, index: int) -> str:
        """Return where a sample comes from: its `name`."""
        ...


class FileSamples:
    """The lines of JSON Lines files, tokenized on access.

    Raises `DataError` for a file that cannot be read, and where there is no sample.
    """

    def __init__(self, files: Sequence[Path], tokenizer: Tokenizer) -> None:
        self._files = [DataFile(path) for path in files]
        self._ends = list(itertools.accumulate(map(len, self._files)))
        if self._ends[-1] == 0:
            raise DataError(f"there is no sample in {', '.join(map(str, files))}")
        self._tokenizer = tokenizer

    def __len__(self) -> int:
        return self._ends[-1]

    def __getitem__(self, index: int) -> TrainSample:
        file, line = self._place(index)
        with _named(name := self.origin(index)):
            record = _record(file.line(line))
            if "messages" in record:
                sample = conversation(self._tokenizer, record["messages"])
            else:
                sample = completion(self._tokenizer, record["prompt"], record["completion"])
        return replace(sample, name=name)

    def origin(self, index: int) -> str:
        file, line = self._place(index)
        return f"{file.path}:{file.number(line)}"

    def _place(self, index: int) -> tuple[DataFile, int]:
        number = bisect.bisect_right(self._ends, index)
        return self._files[number], index - (self._ends[number - 1] if number else 0)


class EnvironmentSamples:
    """The training problems of an environment with their answers.

    Raises `DataError` for an environment without a fixed number of problems.
    """

    def __init__(self, environment: CheckedEnvironment, tokenizer: Tokenizer) -> None:
        size = environment.size("train")
        if size is None:
            raise DataError(
                f"environment `{environment.name}` has no fixed number of problems; "
                "`data.environment` needs one that has"
            )
        self._size = size
        self._environment = environment
        self._tokenizer = tokenizer

    def __len__(self) -> int:
        return self._size

    def __getitem__(self, index: int) -> TrainSample:
        problem = self._environment.problem("train", index)
        with _named(name := self._name(problem, index)):
            if isinstance(problem.prompt, str):
                sample = completion(self._tokenizer, problem.prompt, problem.answer)
            else:
                answer = {"role": "assistant", "content": problem.answer}
                sample = conversation(self._tokenizer, [*problem.prompt, answer])
        return replace(sample, name=name)

    def origin(self, index: int) -> str:
        return self._name(self._environment.problem("train", index), index)

    def _name(self, problem: Problem, index: int) -> str:
        return f"environment `{self._environment.name}`, problem {problem.id!r} (train {index})"


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


@contextmanager
def _named(name: str) -> Iterator[None]:
    """Raise whatever a sample's form or the tokenizer's chat template raises as a `DataError`."""
    try:
        yield
    except DataError as error:
        raise DataError(f"{name}: {error}") from error.__cause__
    except Exception as error:
        kind = type(error).__name__
        raise DataError(f"{name}: it cannot be tokenized: {kind}: {error}") from error


def _record(line: bytes) -> Mapping[str, Any]:
    """Parse and check a line."""
    try:
        record = json.loads(line.decode())
    except UnicodeDecodeError as error:
        raise DataError(f"this line is not UTF-8: {error}") from None
    except RecursionError:
        raise DataError("this line is nested too deeply") from None
    except ValueError as error:
        raise DataError(f"this line is not JSON: {error}") from None
    if fault := _fault(record):
        raise DataError(fault)
    return record


def _fault(record: Any) -> str | None:
    if not isinstance(record, dict):
        return "a sample must be a JSON object"
    if "messages" in record:
        return _messages_fault(record["messages"])
    for key in ("prompt", "completion"):
        if key not in record:
            return f"`{key}` is missing (or give `messages`); found {sorted(record)}"
        if fault := _text_fault(record[key]):
            return f"`{key}` {fault}"
    return None


def _messages_fault(messages: Any) -> str | None:
    if not isinstance(messages, list):
        return "`messages` must be a list of objects with `role` and `content`"
    for number, message in enumerate(messages):
        if not isinstance(message, dict) or "role" not in message:
            return f"`messages[{number}]` must be an object with `role` and `content`"
        role, content = message["role"], message.get("content")
        if role not in _ROLES:
            return f"`messages[{number}].role` is {json.dumps(role)}; allowed: {', '.join(_ROLES)}"
        if content is None and message.get("tool_calls"):
            continue  # A turn that only calls tools has no text.
        if fault := _text_fault(content):
            return f"`messages[{number}].content` {fault}"
    if not any(message["role"] == "assistant" for message in messages):
        return "no message has the role `assistant`, so there is nothing to learn"
    return None


def _text_fault(value: Any) -> str | None:
    if not isinstance(value, str):
        return f"must be text, and is {textwrap.shorten(json.dumps(value), 60, placeholder=' ...')}"
    try:
        value.encode()
    except UnicodeEncodeError:
        return "has half of a surrogate pair (`\\ud800` to `\\udfff`), which is not a character"
    return None
