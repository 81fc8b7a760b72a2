"""A world whose ranks are started by no torchrun; of one rank in this process, as a rule."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest.mock import patch

import torch

from torchrl_ckpt.trainer.distributed import (
    RENDEZVOUS_VARIABLE,
    CollectiveLimits,
    World,
    join_world,
)

_LIMITS = CollectiveLimits(training_seconds=60.0, checkpoint_seconds=60.0)


@contextmanager
def one_rank_world() -> Iterator[World]:
    """Join a world of one rank; afterwards restore the environment and torch's settings."""
    with _joined({}) as world:
        yield world


@contextmanager
def world_of_ranks(rank: int, size: int, meeting: Path) -> Iterator[World]:
    """Join a world as one of `size` ranks, which meet in the file `meeting`."""
    place = {"RANK": str(rank), "WORLD_SIZE": str(size), RENDEZVOUS_VARIABLE: str(meeting)}
    with _joined(place if size > 1 else {}) as world:
        yield world


@contextmanager
def _joined(environment: dict[str, str]) -> Iterator[World]:
    threads = torch.get_num_threads()
    with patch.dict(os.environ, environment), join_world(threads=1, limits=_LIMITS) as world:
        yield world
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(False)
