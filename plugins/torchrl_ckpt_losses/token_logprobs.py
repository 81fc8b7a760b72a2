"""Log-probabilities of the target tokens, the one quantity that every loss starts from."""

from __future__ import annotations

import torch


def token_logprobs(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Natural-log probability of each target, float32.

    Shapes: `logits` `[..., vocabulary]`, `targets` and the result `[...]`.
    """
    flat = torch.nn.functional.cross_entropy(
        logits.float().flatten(0, -2), targets.flatten(), reduction="none"
    )
    return -flat.view(targets.shape)


def masked_sum(values: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Sum of `values` where `mask` is true; what stands elsewhere may be anything, even NaN."""
    return torch.where(mask, values, 0.0).sum()
