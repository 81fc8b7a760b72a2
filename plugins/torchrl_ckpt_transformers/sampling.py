"""From logits to tokens: temperature, top-k, top-p, and a draw by inverse transform."""

from __future__ import annotations

import torch

from torchrl_ckpt.plugin_api.engines import Sampling


def draw(
    logits: torch.Tensor, noise: torch.Tensor, sampling: Sampling
) -> tuple[torch.Tensor, torch.Tensor]:
    """Tokens and their log-probabilities (natural, float32), both `[rows]`.

    `logits` is `[rows, vocabulary]`, `noise` `[rows]` in [0, 1). The log-probability is the one
    under the distribution that the token is drawn from. At temperature 0, where that would always
    be 0, it is the one at temperature 1.
    """
    logits = logits.float()
    if sampling.temperature == 0:
        tokens = logits.argmax(-1)
        return tokens, _pick(logits.log_softmax(-1), tokens)
    logits = logits / sampling.temperature
    if 0 < sampling.top_k < logits.shape[-1]:
        logits = _keep_top_k(logits, sampling.top_k)
    if sampling.top_p < 1:
        logits = _keep_top_p(logits, sampling.top_p)
    logprobs = logits.log_softmax(-1)
    # In float64 the sums tell all noise apart, and noise below 1 stays below the last sum.
    sums = logprobs.double().exp().cumsum(-1)
    tokens = torch.searchsorted(sums, noise[:, None] * sums[:, -1:], right=True)[:, 0]
    return tokens, _pick(logprobs, tokens)


def _pick(logprobs: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    return logprobs.gather(-1, tokens[:, None])[:, 0]


def _keep_top_k(logits: torch.Tensor, k: int) -> torch.Tensor:
    kept = logits.topk(k, dim=-1)
    return torch.full_like(logits, -torch.inf).scatter(-1, kept.indices, kept.values)


def _keep_top_p(logits: torch.Tensor, p: float) -> torch.Tensor:
    """The likeliest tokens up to the one with which their probabilities reach `p`."""
    ordered, order = logits.sort(dim=-1, descending=True, stable=True)
    probabilities = ordered.softmax(-1)
    likelier = probabilities.cumsum(-1) - probabilities
    ordered = ordered.masked_fill(likelier >= p, -torch.inf)
    return torch.full_like(logits, -torch.inf).scatter(-1, order, ordered)
