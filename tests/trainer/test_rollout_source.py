"""Every rank trains on its share of exactly the rollouts that the orchestrator generated."""

from __future__ import annotations

import struct
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.support.rollouts import ATTEMPT_ID, metadata, rollout
from torchrl_ckpt.plugin_api.errors import DataError, WaitTimeout
from torchrl_ckpt.run.rollout_store import RolloutStore
from torchrl_ckpt.trainer.packing import TrainSample
from torchrl_ckpt.trainer.rollout_source import RolloutSource

ROLLOUTS = [
    rollout("a", [1, 2], [3, 4, 5], [-0.5, -1.1, -0.25], advantage=0.125),
    rollout("b", [6], [7], [-2.0], advantage=-1 / 3),
    rollout("c", [8, 9], [10, 11], [-0.1, -0.2], advantage=0.0),
]


def float32(value: float) -> float:
    return struct.unpack("f", struct.pack("f", value))[0]


@pytest.fixture(name="store")
def make_store(tmp_path: Path) -> RolloutStore:
    store = RolloutStore(tmp_path / "rollouts")
    store.clear()
    return store


def source(store: RolloutStore, *, rank: int = 0, world_size: int = 1) -> RolloutSource:
    return RolloutSource(
        store, attempt_id=ATTEMPT_ID, timeout=0.01, rank=rank, world_size=world_size
    )


def test_a_sample_learns_the_completion_and_has_its_advantage_and_logprobs(
    store: RolloutStore,
) -> None:
    store.write(metadata(4), ROLLOUTS)
    batch = source(store).batch(4)
    assert batch.samples[0] == TrainSample(
        token_ids=[1, 2, 3, 4, 5],
        learned=[False, False, True, True, True],
        advantage=0.125,
        old_logprobs=[0.0, 0.0, -0.5, float32(-1.1), -0.25],
        name=f"problem {ROLLOUTS[0].problem!r}",
    )
    assert [sample.advantage for sample in batch.samples] == [0.125, -1 / 3, 0.0]
    assert (batch.temperature, batch.metrics) == (0.7, {"policy_version": 3})


def test_a_greedy_batch_is_trained_on_at_temperature_one(store: RolloutStore) -> None:
    store.write(metadata(4, temperature=0.0), ROLLOUTS)
    assert source(store).batch(4).temperature == 1.0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"reward": float("nan")}, "has nan among its reward"),
        ({"advantage": float("-inf")}, "has -inf among its advantage"),
        ({"logprobs": [float("nan")] * 3}, "has nan among its log-probabilities"),
    ],
)
def test_a_rollout_with_a_number_that_is_not_finite_is_refused_with_its_problem(
    store: RolloutStore, change: dict[str, Any], message: str
) -> None:
    bad = replace(ROLLOUTS[0], completion=[3, 4, 5], logprobs=[-0.5] * 3)
    store.write(metadata(4), [*ROLLOUTS, replace(bad, problem="the bad one", **change)])
    with pytest.raises(DataError, match=rf"step 4: rollout 3 \(problem 'the bad one'\) {message}"):
        source(store).batch(4)


def test_two_ranks_share_a_batch(store: RolloutStore) -> None:
    store.write(metadata(4), ROLLOUTS)
    whole = source(store).batch(4).samples
    shares = [source(store, rank=rank, world_size=2).batch(4).samples for rank in (0, 1)]
    assert [list(share) for share in shares] == [[whole[0], whole[2]], [whole[1]]]


def test_a_batch_of_another_attempt_is_not_taken_and_the_wait_names_its_option(
    store: RolloutStore,
) -> None:
    store.write(metadata(4, attempt_id="another"), ROLLOUTS)
    with pytest.raises(
        WaitTimeout, match=r"the rollouts of step 4 in .*rollouts.*`trainer\.rollout_timeout`"
    ):
        source(store).batch(4)
