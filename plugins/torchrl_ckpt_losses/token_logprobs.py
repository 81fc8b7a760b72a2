"""Log-probabilities of the target tokens, from which every loss is computed."""

from __future__ import annotations

import torch


def token_logprobs(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Return the natural-log probability of each target, in float32.

    Shapes: `logits` `[..., vocabulary]`, `targets` and the result `[...]`.
    """
    flat = torch.nn.functional.cross_entropy(
        logits.float().flatten(0, -2), targets.flatten(), reduction="none"
    )
    return -flat.view(targets.shape)


def masked_sum(values: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Sum `values` where `mask` is true; values elsewhere are ignored, even NaN."""
    return torch.where(mask, values, 0.0).sum()
