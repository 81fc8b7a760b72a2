"""Batches of rollouts arrive as they were sent, whole, and only those of this attempt."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from torchrl_ckpt.plugin_api.errors import DataError
from torchrl_ckpt.run.rollout_store import Rollout, RolloutBatch, RolloutStore

ROLLOUTS = [
    Rollout("cat", [1, 2], [3, 4, 5], [-0.5, -1.0, -0.25], 0.5, 0.125, 3, "load-a"),
    Rollout("at", [6], [7], [-2.0], 1.0, -1 / 3, 3, "load-b"),
]


def batch(step: int, attempt: int = 1, rollouts: list[Rollout] = ROLLOUTS) -> RolloutBatch:
    return RolloutBatch(step, attempt, 3, 0.7, rollouts, {"reward/mean": 0.75})


@pytest.fixture
def directory(tmp_path: Path) -> RolloutStore:
    rollouts = RolloutStore(tmp_path / "rollouts")
    rollouts.clear()
    return rollouts


def test_a_batch_is_read_as_it_was_written(directory: RolloutStore) -> None:
    directory.write(batch(4))
    assert directory.read(4, attempt=1) == batch(4)


def test_a_batch_of_an_earlier_attempt_is_not_taken(directory: RolloutStore) -> None:
    directory.write(batch(1, attempt=1))
    assert directory.read(1, attempt=2) is None


@pytest.mark.parametrize("change", [{"policy_version": 2}, {"load": ""}])
def test_a_rollout_by_weights_that_nobody_checked_is_not_trained_on(
    directory: RolloutStore, change: dict[str, Any]
) -> None:
    directory.write(batch(4, rollouts=[ROLLOUTS[0], replace(ROLLOUTS[1], **change)]))
    with pytest.raises(DataError, match="not every rollout of step 4 names the checked load"):
        directory.read(4, attempt=1)


def test_a_batch_by_a_policy_of_its_future_is_not_trained_on(directory: RolloutStore) -> None:
    directory.write(batch(3))
    with pytest.raises(DataError, match="load of policy 3"):
        directory.read(3, attempt=1)


def test_batches_that_are_used_up_go(directory: RolloutStore) -> None:
    for step in (4, 5, 6):
        directory.write(batch(step))
    directory.forget(through_step=5)
    assert [directory.read(step, 1) is not None for step in (4, 5, 6)] == [False, False, True]
