"""Every sample is taken once per epoch, over resumes, workers and ranks."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from tests.support.tiny_trainer import TenSamples
from torchrl_ckpt.shuffled_stream import ShuffledStream
from torchrl_ckpt.trainer.distributed import World
from torchrl_ckpt.trainer.sft_source import SftSource

ORDER = [TenSamples()[index].token_ids[0] for index in ShuffledStream(10, seed=5).take(30)]


def make_source(world: World, batch_size: int = 5, num_workers: int = 0) -> SftSource:
    return SftSource(
        TenSamples(), batch_size=batch_size, num_workers=num_workers, seed=5, world=world
    )


def take(source: SftSource, batches: int) -> list[int]:
    """The first tokens of the samples of the next batches."""
    return [sample.token_ids[0] for _ in range(batches) for sample in source.batch(0).samples]


@pytest.mark.parametrize(("before", "after"), [(0, 0), (0, 2), (2, 0), (2, 2), (2, 1)])
def test_a_resume_at_the_end_of_an_epoch_skips_and_repeats_nothing(
    world: World, before: int, after: int
) -> None:
    first = make_source(world, num_workers=before)
    seen = take(first, 2)
    second = make_source(world, num_workers=after)
    second.load_state_dict(json.loads(json.dumps(first.state_dict())))
    assert seen + take(second, 4) == ORDER


def test_a_state_does_not_count_what_workers_have_prefetched(world: World) -> None:
    source = make_source(world, num_workers=2)
    take(source, 1)
    assert source.state_dict()["stream"] == {"position": 5, "size": 10}


@pytest.mark.parametrize("num_ranks", [1, 2, 3])
def test_ranks_share_each_batch_and_a_resume_may_change_their_number(
    world: World, num_ranks: int
) -> None:
    first = make_source(world, batch_size=6)
    seen = take(first, 2)
    state = json.loads(json.dumps(first.state_dict()))
    sources = []
    for rank in range(num_ranks):
        source = make_source(replace(world, rank=rank, size=num_ranks), batch_size=6)
        source.load_state_dict(state)
        sources.append(source)
    for batch in range(2, 5):
        shares = [take(source, 1) for source in sources]
        seen += [share[i] for i in range(6) for share in shares if i < len(share)]
        assert seen == ORDER[: 6 * (batch + 1)]
