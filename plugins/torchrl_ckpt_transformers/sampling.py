"""Draws tokens from logits: temperature, top-k, top-p, and inverse transform sampling."""

from __future__ import annotations

import torch

from torchrl_ckpt.plugin_api.engines import Sampling


def draw(
    logits: torch.Tensor, noise: torch.Tensor, sampling: Sampling
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return tokens and their log-probabilities (natural, float32), both `[rows]`.

    `logits` is `[rows, vocabulary]`, `noise` is `[rows]` in [0, 1). A log-probability is that of
    the distribution that the token is drawn from. At temperature 0, where it would always be 0, it
    is that of temperature 1.
    """
    logits = logits.float()
    if sampling.temperature == 0:
        tokens = logits.argmax(-1)
        return tokens, _pick(logits.log_softmax(-1), tokens)
    logits = logits / sampling.temperature
    if 0 < sampling.top_k < logits.shape[-1]:
        logits = _mask_below_top_k(logits, sampling.top_k)
    if sampling.top_p < 1:
        logits = _mask_below_top_p(logits, sampling.top_p)
    logprobs = logits.log_softmax(-1)
    # Float64 resolves all noise values, and keeps noise below 1 below the last sum.
    sums = logprobs.double().exp().cumsum(-1)
    tokens = torch.searchsorted(sums, noise[:, None] * sums[:, -1:], right=True)[:, 0]
    return tokens, _pick(logprobs, tokens)


def _pick(logprobs: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    return logprobs.gather(-1, tokens[:, None])[:, 0]


def _mask_below_top_k(logits: torch.Tensor, k: int) -> torch.Tensor:
    top = logits.topk(k, dim=-1)
    return torch.full_like(logits, -torch.inf).scatter(-1, top.indices, top.values)


def _mask_below_top_p(logits: torch.Tensor, p: float) -> torch.Tensor:
    """Mask all but the likeliest tokens, up to the one at which their probabilities reach `p`."""
    ordered, order = logits.sort(dim=-1, descending=True, stable=True)
    probabilities = ordered.softmax(-1)
    likelier = probabilities.cumsum(-1) - probabilities
    ordered = ordered.masked_fill(likelier >= p, -torch.inf)
    return torch.full_like(logits, -torch.inf).scatter(-1, order, ordered)
