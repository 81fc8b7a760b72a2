"""Advantages: by how much a completion is better than the others of its group."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Literal

_EPSILON = 1e-6


def group_advantages(
    rewards: Sequence[float], method: Literal["centred", "normalised"]
) -> list[float]:
    """Return the advantage of each completion of one problem.

    `centred`: the reward minus the mean (Dr. GRPO, arXiv:2503.20783). `normalised`: that divided by
    the standard deviation (GRPO, arXiv:2402.03300, section 4.1.2).
    """
    mean = statistics.fmean(rewards)
    centred = [reward - mean for reward in rewards]
    if method == "centred":
        return centred
    deviation = statistics.pstdev(rewards)
    return [value / (deviation + _EPSILON) for value in centred]


def share_without_signal(rewards: Sequence[float], group_size: int) -> float:
    """Return the share of groups whose rewards are all equal: nothing is learned from them.

    `rewards` has those of one group after another.
    """
    groups = [rewards[i : i + group_size] for i in range(0, len(rewards), group_size)]
    return statistics.fmean(min(group) == max(group) for group in groups)
