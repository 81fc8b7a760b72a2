"""The batches of supervised fine-tuning: torchdata's StatefulDataLoader over a global order.

All ranks follow one order together and each takes its share of every global batch, so the position
in the data is the same on all of them and does not depend on their number.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import torch
from torchdata.stateful_dataloader import StatefulDataLoader

from torchrl_ckpt.plugin_api.plugin import Json
from torchrl_ckpt.shuffled_stream import ShuffledStream, StreamPosition
from torchrl_ckpt.trainer.distributed import World
from torchrl_ckpt.trainer.packing import TrainSample
from torchrl_ckpt.trainer.source import TrainBatch


class Samples(Protocol):
    """A data set of known size."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> TrainSample: ...


class GlobalBatches:
    """An endless batch sampler: the indices of this rank's share of each global batch."""

    def __init__(self, stream: ShuffledStream, batch_size: int, rank: int, world_size: int) -> None:
        self._stream = stream
        self._batch_size = batch_size
        self._rank = rank
        self._world_size = world_size

    def __iter__(self) -> Iterator[list[int]]:
        return self

    def __next__(self) -> list[int]:
        return self._stream.take(self._batch_size)[self._rank :: self._world_size]

    def state_dict(self) -> StreamPosition:
        return self._stream.state_dict()

    def load_state_dict(self, state: StreamPosition) -> None:
        self._stream.load_state_dict(state)


class SftSource:
    """Batches of a fixed number of samples, epoch after epoch, shuffled anew in each."""

    provides: frozenset[str] = frozenset()

    def __init__(
        self, samples: Samples, *, batch_size: int, num_workers: int, seed: int, world: World
    ) -> None:
        self._stream = ShuffledStream(len(samples), seed)
        self._position = self._stream.state_dict()
        self._position_before = self._position["position"]
        self._is_loader_ahead = False
        self._batch_size = batch_size
        self._num_workers = num_workers
        self._loader: StatefulDataLoader[Sequence[TrainSample]] = StatefulDataLoader(
            samples,  # type: ignore[arg-type]
            batch_sampler=GlobalBatches(self._stream, batch_size, world.rank, world.size),  # type: ignore[arg-type]
            num_workers=num_workers,
            collate_fn=_unchanged,
            # Each new iterator draws a seed for its workers. If it drew from torch's global
            # generator, a resumed run would draw once more than an uninterrupted one.
            generator=torch.Generator().manual_seed(seed),
        )
        self._iterator: Iterator[Sequence[TrainSample]] | None = None

    def batch(self, step: int) -> TrainBatch:
        self._position_before = self._position["position"]
        # Created at the first batch and not before: a state loaded later is ignored.
        if self._iterator is None:
            self._iterator = iter(self._loader)
        samples = next(self._iterator)
        # Counts what was returned, not what workers have prefetched.
        self._position["position"] += self._batch_size
        return TrainBatch(samples)

    def put_back(self) -> None:
        self._position["position"] = self._position_before
        self._is_loader_ahead = True

    def state_dict(self) -> Json:
        return {
            "stream": dict(self._position),
            "num_workers": self._num_workers,
            "loader": None if self._is_loader_ahead else self._loader.state_dict(),
        }

    def load_state_dict(self, state: Json) -> None:
        self._stream.load_state_dict(state["stream"])
        self._position = self._stream.state_dict()
        # The loader's state depends on the number of workers. Without it the position is enough,
        # because a sample is a function of its index here.
        if state["num_workers"] == self._num_workers and state["loader"] is not None:
            self._loader.load_state_dict(state["loader"])


def _unchanged(samples: list[Any]) -> list[Any]:
    return samples
