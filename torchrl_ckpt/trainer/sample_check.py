"""The check of a data set before the first step: the form of each sample, and its length."""

from __future__ import annotations

import sys
from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from typing import Literal

import numpy as np

from torchrl_ckpt.config.length_limit import LengthLimit
from torchrl_ckpt.plugin_api.errors import DataError
from torchrl_ckpt.plugin_api.plugin import Json
from torchrl_ckpt.run.progress import Finding
from torchrl_ckpt.trainer.packing import TrainSample
from torchrl_ckpt.trainer.sft_samples import DataSet

TooLong = Literal["error", "drop", "truncate"]


class FittingSamples:
    """`samples` without those at the indices `dropped`. Each is named, and cut off after `length`
    tokens."""

    def __init__(self, samples: DataSet, dropped: Collection[int], length: int) -> None:
        self._samples = samples
        self._length = length
        self._kept = np.delete(np.arange(len(samples)), list(dropped)) if dropped else None

    def __len__(self) -> int:
        return len(self._samples) if self._kept is None else len(self._kept)

    def __getitem__(self, index: int) -> TrainSample:
        number = index if self._kept is None else int(self._kept[index])
        sample = _truncated(self._samples[number], self._length)
        return replace(sample, name=self._samples.origin(number))


class SampleCheck:
    """Tokenizes every sample once, and says what becomes of those longer than `limit`.

    The ranks share the work: each calls `scan` with its part of the indices, and `conclude` with
    what all of them have found, so that they agree.
    """

    def __init__(self, samples: DataSet, limit: LengthLimit, too_long: TooLong) -> None:
        self._samples = samples
        self._limit = limit
        self._too_long = too_long

    def scan(self, indices: Sequence[int], on_progress: Callable[[int], None]) -> Json:
        """Return what is to be known of the samples at `indices`, up to the first faulty one.

        `on_progress` is called with the number of samples so far.
        """
        shortest, longest = sys.maxsize, 0
        too_long: dict[int, int] = {}
        unlearnable: list[int] = []
        fault = None
        for number, index in enumerate(indices, start=1):
            try:
                sample = self._samples[index]
            except DataError as error:
                fault = [index, str(error)]
                break
            size = len(sample.token_ids)
            shortest, longest = min(shortest, size), max(longest, size)
            if size > self._limit.tokens:
                too_long[index] = size
            if not _truncated(sample, self._limit.tokens).num_learned:
                unlearnable.append(index)
            on_progress(number)
        return {
            "shortest": shortest,
            "longest": longest,
            "too_long": list(too_long.items()),
            "unlearnable": unlearnable,
            "fault": fault,
        }

    def conclude(self, scans: Sequence[Json]) -> tuple[FittingSamples, list[Finding]]:
        """Return the samples to train on, and what the user should know about them.

        Raises `DataError` for the first sample that is faulty, and for those that are too long
        unless they are to be dropped or truncated.
        """
        if faults := sorted(scan["fault"] for scan in scans if scan["fault"]):
            raise DataError(faults[0][1])
        too_long = {index: size for scan in scans for index, size in scan["too_long"]}
        unlearnable = {index for scan in scans for index in scan["unlearnable"]}
        if never := sorted(unlearnable - too_long.keys()):
            raise DataError(f"{self._samples.origin(never[0])}: it has no token to learn")
        shortest = min(scan["shortest"] for scan in scans)
        longest = max(scan["longest"] for scan in scans)
        found = f"{len(self._samples):,} samples of {shortest:,} to {longest:,} tokens"
        findings = [Finding(f"{found}; the limit is {self._limit}")]
        dropped: Collection[int] = ()
        if too_long:
            dropped = unlearnable if self._too_long == "truncate" else too_long.keys()
            findings.append(self._too_long_found(too_long, dropped))
        return FittingSamples(self._samples, dropped, self._limit.tokens), findings

    def _too_long_found(self, too_long: dict[int, int], dropped: Collection[int]) -> Finding:
        first, longest = min(too_long), max(too_long, key=lambda index: too_long[index])
        which = (
            f"{len(too_long):,} of {len(self._samples):,} samples are longer than {self._limit}, "
            f"first {self._samples.origin(first)} with {too_long[first]:,} tokens"
        )
        if longest != first:
            which += f", the longest {self._samples.origin(longest)} with {too_long[longest]:,}"
        if self._too_long == "error":
            raise DataError(
                f"{which}. Raise the limit, or say with `data.too_long` what becomes of them: "
                "`drop` or `truncate`"
            )
        if len(dropped) == len(self._samples):
            raise DataError(f"{which}: none is left to train on")
        if self._too_long == "drop":
            return Finding(f"{which}: they are dropped", "warning")
        lost = f", and {len(dropped):,} whose prompt fills it are dropped" if dropped else ""
        return Finding(f"{which}: they are cut off there{lost}", "warning")


def _truncated(sample: TrainSample, length: int) -> TrainSample:
    if len(sample.token_ids) <= length:
        return sample
    return replace(sample, token_ids=sample.token_ids[:length], learned=sample.learned[:length])
