"""A sample that is too long is found before the first step, or becomes what the recipe says."""

from __future__ import annotations

import pytest

from torchrl_ckpt.config.length_limit import LengthLimit
from torchrl_ckpt.plugin_api.errors import DataError
from torchrl_ckpt.run.progress import Finding
from torchrl_ckpt.trainer.packing import TrainSample
from torchrl_ckpt.trainer.sample_check import FittingSamples, SampleCheck, TooLong

LIMIT = LengthLimit(5, "`packing.length`")


class Sizes:
    """Samples of given sizes, the first three tokens of which are the prompt; 0 is a fault."""

    def __init__(self, *sizes: int) -> None:
        self._sizes = sizes

    def __len__(self) -> int:
        return len(self._sizes)

    def __getitem__(self, index: int) -> TrainSample:
        size = self._sizes[index]
        if size == 0:
            raise DataError(f"{self.origin(index)}: a fault")
        prompt = 3 if size < 9 else size - 1
        return TrainSample([index] * size, [False] * prompt + [True] * (size - prompt))

    def origin(self, index: int) -> str:
        return f"d.jsonl:{index + 1}"


def check(
    *sizes: int, too_long: TooLong = "error", num_ranks: int = 1
) -> tuple[FittingSamples, list[Finding]]:
    checks = [SampleCheck(Sizes(*sizes), LIMIT, too_long) for _ in range(num_ranks)]
    scans = [
        checks[rank].scan(range(rank, len(sizes), num_ranks), lambda number: None)
        for rank in range(num_ranks)
    ]
    (samples, findings), *others = [each.conclude(scans) for each in checks]
    assert all(len(other) == len(samples) for other, _ in others)
    return samples, findings


def sizes_of(samples: FittingSamples) -> list[tuple[int, int]]:
    """Number and length of each sample."""
    taken = [samples[index] for index in range(len(samples))]
    return [(sample.token_ids[0], len(sample.token_ids)) for sample in taken]


def test_samples_that_fit_are_all_trained_on() -> None:
    samples, findings = check(4, 5, 5)
    assert sizes_of(samples) == [(0, 4), (1, 5), (2, 5)]
    text = "3 samples of 4 to 5 tokens; the limit is 5 tokens (`packing.length`)"
    assert findings == [Finding(text)]


@pytest.mark.parametrize("num_ranks", [1, 2, 3, 7])
def test_samples_too_long_are_an_error_that_names_first_and_longest(num_ranks: int) -> None:
    with pytest.raises(DataError) as caught:
        check(4, 6, 5, 8, 4, num_ranks=num_ranks)
    assert str(caught.value) == (
        "2 of 5 samples are longer than 5 tokens (`packing.length`), first d.jsonl:2 with 6 "
        "tokens, the longest d.jsonl:4 with 8. Raise the limit, or say with `data.too_long` what "
        "becomes of them: `drop` or `truncate`"
    )


@pytest.mark.parametrize("num_ranks", [1, 3])
def test_samples_too_long_are_dropped_if_the_recipe_says_so(num_ranks: int) -> None:
    samples, findings = check(4, 6, 5, 8, 4, too_long="drop", num_ranks=num_ranks)
    assert sizes_of(samples) == [(0, 4), (2, 5), (4, 4)]
    assert findings[1].level == "warning"
    assert findings[1].text.startswith("2 of 5 samples are longer")
    assert findings[1].text.endswith(": they are dropped")


def test_samples_too_long_are_cut_off_and_dropped_where_only_the_prompt_is_left() -> None:
    samples, findings = check(4, 6, 9, 8, too_long="truncate")
    assert sizes_of(samples) == [(0, 4), (1, 5), (3, 5)]
    assert list(samples[2].learned) == [False, False, False, True, True]
    assert findings[1].text.endswith(
        ": they are cut off there, and 1 whose prompt fills it are dropped"
    )


def test_where_all_are_too_long_nothing_is_left_to_train_on() -> None:
    with pytest.raises(DataError, match="none is left to train on"):
        check(6, 7, too_long="drop")


@pytest.mark.parametrize("num_ranks", [1, 2, 3])
def test_the_first_faulty_sample_is_named_whichever_rank_finds_it(num_ranks: int) -> None:
    with pytest.raises(DataError, match=r"^d\.jsonl:3: a fault$"):
        check(4, 8, 0, 4, 0, too_long="drop", num_ranks=num_ranks)
