"""Advantages compare a completion with its group."""

from __future__ import annotations

from typing import Literal

import pytest

from torchrl_ckpt.orchestrator.advantages import group_advantages


def test_centred_advantages_are_rewards_minus_their_mean() -> None:
    assert group_advantages([1.0, 0.0, 0.5, 0.5], "centred") == [0.5, -0.5, 0.0, 0.0]


def test_normalised_advantages_have_standard_deviation_one() -> None:
    advantages = group_advantages([1.0, 0.0], "normalised")
    assert advantages == pytest.approx([1.0, -1.0], rel=1e-5)


@pytest.mark.parametrize("method", ["centred", "normalised"])
def test_equal_rewards_give_no_advantage(method: Literal["centred", "normalised"]) -> None:
    assert group_advantages([0.3] * 4, method) == pytest.approx([0.0] * 4)
