"""Advantages compare a completion with its group."""

from __future__ import annotations

import pytest

from torchrl_ckpt.orchestrator.advantages import group_advantages


def test_centred_advantages_are_rewards_less_their_mean() -> None:
    assert group_advantages([1.0, 0.0, 0.5, 0.5], "centred") == [0.5, -0.5, 0.0, 0.0]


def test_normalised_ones_have_deviation_one() -> None:
    advantages = group_advantages([1.0, 0.0], "normalised")
    assert advantages == pytest.approx([1.0, -1.0], rel=1e-5)


@pytest.mark.parametrize("how", ["centred", "normalised"])
def test_a_group_that_agrees_teaches_nothing(how: str) -> None:
    assert group_advantages([0.3] * 4, how) == pytest.approx([0.0] * 4)  # type: ignore[arg-type]
