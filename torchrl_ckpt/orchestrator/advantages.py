"""How much better than its group a completion was."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Literal

_EPSILON = 1e-6


def group_advantages(
    rewards: Sequence[float], how: Literal["centred", "normalised"]
) -> list[float]:
    """Advantages of one problem's completions.

    `centred`: reward less the mean (Dr. GRPO, arXiv:2503.20783). `normalised`: that divided by the
    standard deviation (GRPO, arXiv:2402.03300, section 4.1.2).
    """
    mean = statistics.fmean(rewards)
    centred = [reward - mean for reward in rewards]
    if how == "centred":
        return centred
    deviation = statistics.pstdev(rewards)
    return [value / (deviation + _EPSILON) for value in centred]
