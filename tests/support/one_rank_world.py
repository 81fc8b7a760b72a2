"""A world of one rank in this process."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from unittest.mock import patch

import torch

from torchrl_ckpt.trainer.distributed import CollectiveLimits, World, join_world

_LIMITS = CollectiveLimits(training_seconds=60.0, checkpoint_seconds=60.0)


@contextmanager
def one_rank_world() -> Iterator[World]:
    """Join a world of one rank; afterwards restore the environment and torch's settings."""
    threads = torch.get_num_threads()
    with (
        patch.dict(os.environ),
        join_world(threads=1, limits=_LIMITS) as world,
    ):
        yield world
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(False)
