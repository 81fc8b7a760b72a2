"""A world of one rank, in which this folder's tests train."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.one_rank_world import one_rank_world
from torchrl_ckpt.trainer.distributed import World


@pytest.fixture(scope="package", name="world")
def join_one_rank_world() -> Iterator[World]:
    with one_rank_world() as world:
        yield world
