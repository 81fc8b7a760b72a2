"""Only the model's own turns are learned, in both data formats."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from tests.support.tiny_model import TOKENIZER
from torchrl_ckpt.config.length_limit import LengthLimit
from torchrl_ckpt.plugin_api.checked_environment import CheckedEnvironment
from torchrl_ckpt.plugin_api.environments import Problem, Score, Split
from torchrl_ckpt.plugin_api.errors import DataError
from torchrl_ckpt.plugin_api.models import Tokenizer
from torchrl_ckpt.trainer.packing import TrainSample
from torchrl_ckpt.trainer.sample_check import SampleCheck
from torchrl_ckpt.trainer.sft_samples import EnvironmentSamples, FileSamples


@pytest.fixture(scope="module", name="tokenizer")
def load_tokenizer() -> Tokenizer:
    return AutoTokenizer.from_pretrained(TOKENIZER)


def load(path: Path, tokenizer: Tokenizer, *lines: object) -> FileSamples:
    path.write_text(
        "\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines)
    )
    return FileSamples([path], tokenizer)


def learned_text(sample: TrainSample, tokenizer: Tokenizer) -> str:
    ids = [t for t, learn in zip(sample.token_ids, sample.learned, strict=True) if learn]
    return tokenizer.decode([t for t in ids if t != tokenizer.eos_token_id])


def test_a_completion_is_learned_with_its_end_token(tmp_path: Path, tokenizer: Tokenizer) -> None:
    samples = load(tmp_path / "d.jsonl", tokenizer, {"prompt": "ab>", "completion": "ba"})
    sample = samples[0]
    assert tokenizer.decode(sample.token_ids[:3]) == "ab>"
    assert learned_text(sample, tokenizer) == "ba"
    assert sample.token_ids[-1] == tokenizer.eos_token_id
    assert sample.learned == [False, False, False, True, True, True]
    assert sample.name == f"{tmp_path}/d.jsonl:1"


def test_only_the_assistants_turns_are_learned(tmp_path: Path, tokenizer: Tokenizer) -> None:
    turns = [
        {"role": "user", "content": "ab"},
        {"role": "assistant", "content": "ba"},
        {"role": "user", "content": "xyz"},
        {"role": "assistant", "content": "zyx"},
    ]
    sample = load(tmp_path / "d.jsonl", tokenizer, {"messages": turns})[0]
    assert learned_text(sample, tokenizer) == "bazyx"
    # Each answer teaches where to stop.
    stops = [
        learn
        for token, learn in zip(sample.token_ids, sample.learned, strict=True)
        if token == tokenizer.eos_token_id
    ]
    assert stops == [True, True]


def turns(*messages: tuple[object, object]) -> dict[str, object]:
    return {"messages": [{"role": role, "content": content} for role, content in messages]}


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{not json", r": this line is not JSON"),
        ("[" * 100_000, r": this line is nested too deeply"),
        ({"prompt": "a"}, r": `completion` is missing"),
        ({"prompt": 3, "completion": "a"}, r": `prompt` must be text, and is 3"),
        ([1], r": a sample must be a JSON object"),
        (turns(("user", "a")), r": no message has the role `assistant`"),
        (
            turns(("user", "a"), ("asistant", "b")),
            r": `messages\[1\]\.role` is \"asistant\"; allowed: system, developer, user",
        ),
        (
            turns(("user", None), ("assistant", "b")),
            r": `messages\[0\]\.content` must be text, and is null",
        ),
        ({"prompt": "\ud800", "completion": "a"}, r": `prompt` has half of a surrogate pair"),
        ({"prompt": "", "completion": ""}, r": it has no token to learn"),
    ],
)
def test_a_bad_line_is_named(
    tmp_path: Path, tokenizer: Tokenizer, line: object, message: str
) -> None:
    good = {"prompt": "a>", "completion": "a"}
    samples = load(tmp_path / "d.jsonl", tokenizer, good, "", good, line, good)
    check = SampleCheck(samples, LengthLimit(100, "a test"), "error")
    with pytest.raises(DataError, match=rf"d\.jsonl:4{message}"):
        check.conclude([check.scan(range(len(samples)), lambda number: None)])


def test_a_turn_that_calls_a_tool_needs_no_text(tmp_path: Path, tokenizer: Tokenizer) -> None:
    call = {"role": "assistant", "content": None, "tool_calls": [{"id": "1"}]}
    messages = [{"role": "user", "content": "a"}, call, {"role": "assistant", "content": "b"}]
    with pytest.raises(DataError, match=r"d\.jsonl:1: it cannot be tokenized: TypeError"):
        # Not refused for its form, but by this template, which has no tools.
        load(tmp_path / "d.jsonl", tokenizer, {"messages": messages})[0]


def test_a_missing_file_is_named(tmp_path: Path, tokenizer: Tokenizer) -> None:
    with pytest.raises(DataError, match=r"nowhere\.jsonl"):
        FileSamples([tmp_path / "nowhere.jsonl"], tokenizer)


def test_files_without_a_sample_are_named(tmp_path: Path, tokenizer: Tokenizer) -> None:
    (tmp_path / "d.jsonl").write_text("\n \n")
    with pytest.raises(DataError, match=r"there is no sample in .*d\.jsonl"):
        FileSamples([tmp_path / "d.jsonl"], tokenizer)


class Reversals:
    """An environment of two problems, or of any number, with text or chat prompts."""

    plugin_api = 1

    def __init__(self, size: int | None = 2) -> None:
        self._size = size

    def size(self, split: Split) -> int | None:
        return self._size

    def problem(self, split: Split, index: int) -> Problem:
        prompt = "ab>" if index == 0 else [{"role": "user", "content": "ab"}]
        return Problem(f"{split}/{index}", prompt, answer="ba")

    def score(self, problem: Problem, completion: str) -> Score:
        raise NotImplementedError


def test_an_environments_answers_are_learned(tokenizer: Tokenizer) -> None:
    samples = EnvironmentSamples(CheckedEnvironment("acme", Reversals()), tokenizer)
    assert [learned_text(samples[index], tokenizer) for index in range(len(samples))] == ["ba"] * 2
    assert samples[0].learned == [False, False, False, True, True, True]
    assert samples[1].token_ids[-1] == tokenizer.eos_token_id


def test_an_environment_without_a_number_of_problems_is_refused(tokenizer: Tokenizer) -> None:
    with pytest.raises(DataError, match=r"no fixed number of problems.*`data\.environment`"):
        EnvironmentSamples(CheckedEnvironment("acme", Reversals(size=None)), tokenizer)
