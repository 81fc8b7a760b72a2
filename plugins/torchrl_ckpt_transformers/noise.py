"""Sampling noise as a pure function of seed and sample: no generator and no state."""

from __future__ import annotations

import numpy as np
import torch

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def uniforms(seeds: np.ndarray, samples: np.ndarray, num_tokens: int) -> torch.Tensor:
    """Return numbers in [0, 1), float64 `[rows, num_tokens]`, multiples of 2**-24.

    Row i is a function of `seeds[i]` and `samples[i]` (uint64, `[rows]`) alone, and its number at
    a position does not depend on `num_tokens`. The rows are streams of SplitMix64 (Steele, Lea and
    Flood 2014), each started from a hash of seed and sample.
    """
    starts = _mix(_mix(seeds) + (samples + np.uint64(1)) * _GOLDEN)
    positions = np.arange(1, num_tokens + 1, dtype=np.uint64) * _GOLDEN
    bits = _mix(starts[:, None] + positions[None, :])
    return torch.from_numpy((bits >> np.uint64(40)).astype(np.float64) * 2.0**-24)


def _mix(x: np.ndarray) -> np.ndarray:
    """SplitMix64's finaliser: every bit of the result depends on every bit of `x`."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))
