"""Packs samples of different lengths into rows of one length, and rows into micro-batches."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from torchrl_ckpt.plugin_api.errors import DataError


@dataclass(frozen=True)
class TrainSample:
    """One document to train on.

    `learned` says for each token whether it is a target. `old_logprobs` is 0 where it is not.
    `name` tells a user which one it is.
    """

    token_ids: Sequence[int]
    learned: Sequence[bool]
    advantage: float = 0.0
    old_logprobs: Sequence[float] | None = None
    name: str = ""

    @property
    def num_learned(self) -> int:
        """The number of targets. The first token is none: nothing precedes it to predict it
        from."""
        return sum(self.learned[1:])


@dataclass(frozen=True)
class MicroBatch:
    """Rows of packed samples. Every tensor is `[rows, length]`.

    `position_ids` start again at 0 with every document, by which the model keeps documents apart;
    `documents` numbers them within a row from 0, with -1 for padding.
    """

    input_ids: torch.Tensor
    position_ids: torch.Tensor
    documents: torch.Tensor
    learned: torch.Tensor
    advantages: torch.Tensor
    old_logprobs: torch.Tensor

    def to(self, device: torch.device) -> MicroBatch:
        return MicroBatch(**{name: tensor.to(device) for name, tensor in vars(self).items()})


def pack(samples: Sequence[TrainSample], length: int) -> list[list[TrainSample]]:
    """Put each sample, in order, into the first row with room for it.

    Raises `DataError` for a sample that is longer than a row.
    """
    rows: list[list[TrainSample]] = []
    room: list[int] = []
    for sample in samples:
        size = len(sample.token_ids)
        if size > length:
            raise DataError(
                f"{sample.name or 'a sample'} has {size} tokens, but `packing.length` is {length}; "
                "raise it"
            )
        row = next((index for index, free in enumerate(room) if free >= size), len(rows))
        if row == len(rows):
            rows.append([])
            room.append(length)
        rows[row].append(sample)
        room[row] -= size
    return rows


def micro_batch(rows: Sequence[Sequence[TrainSample]], length: int) -> MicroBatch:
    """Make tensors of `rows`. No rows make one row of padding, without any target."""
    shape = (max(1, len(rows)), length)
    batch = MicroBatch(
        input_ids=torch.zeros(shape, dtype=torch.int64),
        # Padding is a document of its own: it attends to itself, so no softmax is over nothing.
        position_ids=torch.arange(length).expand(shape).clone(),
        documents=torch.full(shape, -1, dtype=torch.int64),
        learned=torch.zeros(shape, dtype=torch.bool),
        advantages=torch.zeros(shape),
        old_logprobs=torch.zeros(shape),
    )
    for row, samples in enumerate(rows):
        start = 0
        for document, sample in enumerate(samples):
            end = start + len(sample.token_ids)
            batch.input_ids[row, start:end] = torch.tensor(sample.token_ids)
            batch.position_ids[row, start:end] = torch.arange(end - start)
            batch.documents[row, start:end] = document
            batch.learned[row, start + 1 : end] = torch.tensor(sample.learned[1:], dtype=torch.bool)
            batch.advantages[row, start:end] = sample.advantage
            if sample.old_logprobs is not None:
                batch.old_logprobs[row, start:end] = torch.tensor(sample.old_logprobs)
            start = end
        batch.position_ids[row, start:] = torch.arange(length - start)
    return batch
