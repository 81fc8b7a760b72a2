"""Batches of rollouts arrive as they were sent, whole, and only those of this attempt."""

from __future__ import annotations

from pathlib import Path

import pytest

from torchrl_ckpt.errors import WaitTimeout
from torchrl_ckpt.exchange.rollouts import Rollout, RolloutBatch, RolloutDirectory
from torchrl_ckpt.exchange.waiting import wait_for

ROLLOUTS = [
    Rollout("cat", [1, 2], [3, 4, 5], [-0.5, -1.0, -0.25], 0.5, 0.125),
    Rollout("at", [6], [7], [-2.0], 1.0, -1 / 3),
]


def batch(step: int, attempt: int = 1) -> RolloutBatch:
    return RolloutBatch(step, attempt, step - 1, 0.7, ROLLOUTS, {"reward/mean": 0.75})


@pytest.fixture
def directory(tmp_path: Path) -> RolloutDirectory:
    rollouts = RolloutDirectory(tmp_path / "rollouts")
    rollouts.clear()
    return rollouts


def test_a_batch_is_read_as_it_was_written(directory: RolloutDirectory) -> None:
    directory.write(batch(4))
    assert directory.read(4, attempt=1) == batch(4)


def test_a_batch_of_an_earlier_attempt_is_not_taken(directory: RolloutDirectory) -> None:
    directory.write(batch(1, attempt=1))
    assert directory.read(1, attempt=2) is None


def test_batches_that_are_used_up_go(directory: RolloutDirectory) -> None:
    for step in (1, 2, 3):
        directory.write(batch(step))
    directory.forget(through_step=2)
    assert [directory.read(step, 1) is not None for step in (1, 2, 3)] == [False, False, True]


def test_waiting_in_vain_says_for_what_and_which_option_sets_the_limit() -> None:
    with pytest.raises(WaitTimeout, match=r"waited 0 s for the rollouts.*`trainer\.limit`"):
        wait_for(lambda: None, "the rollouts", 0.01, "trainer.limit")
