"""Sampling: tokens are drawn from the distribution that is reported."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torchrl_ckpt_transformers.noise import uniforms
from torchrl_ckpt_transformers.sampling import draw

from torchrl_ckpt.plugin_api.engines import Sampling

LOGITS = torch.tensor([2.0, -1.0, 0.5, 1.0, -3.0])


def _uints(*values: int) -> np.ndarray:
    return np.array(values, dtype=np.uint64)


def _frequencies(sampling: Sampling, draws: int = 40_000) -> tuple[torch.Tensor, torch.Tensor]:
    """Return how often each token is drawn, and the probability that is reported for it (0 if it is
    never drawn)."""
    noise = uniforms(_uints(7), _uints(0), draws)[0]
    tokens, logprobs = draw(LOGITS.expand(draws, -1), noise, sampling)
    reported = torch.zeros(len(LOGITS)).scatter(0, tokens, logprobs.exp())
    return torch.bincount(tokens, minlength=len(LOGITS)) / draws, reported


@pytest.mark.parametrize(
    ("sampling", "kept"),
    [
        (Sampling(1), {0, 1, 2, 3, 4}),
        (Sampling(1, temperature=0.5), {0, 1, 2, 3, 4}),
        (Sampling(1, top_k=2), {0, 3}),
        (Sampling(1, top_k=99), {0, 1, 2, 3, 4}),
        (Sampling(1, top_p=0.7), {0, 3}),
        (Sampling(1, top_p=0.01), {0}),
        (Sampling(1, top_k=3, top_p=0.95, temperature=2.0), {0, 2, 3}),
    ],
)
def test_tokens_come_as_often_as_their_reported_probability(
    sampling: Sampling, kept: set[int]
) -> None:
    frequencies, reported = _frequencies(sampling)
    assert set(frequencies.nonzero()[:, 0].tolist()) == kept
    torch.testing.assert_close(frequencies, reported, rtol=0, atol=0.01)


def test_temperature_zero_takes_the_likeliest_token() -> None:
    tokens, logprobs = draw(LOGITS[None], torch.tensor([0.99]).double(), Sampling(1, temperature=0))
    assert tokens.tolist() == [0]
    torch.testing.assert_close(logprobs, LOGITS.log_softmax(-1)[:1])


@pytest.mark.parametrize("noise", [0.0, 1 - 2.0**-24])
def test_the_extremes_of_the_noise_draw_tokens_that_can_be_drawn(noise: float) -> None:
    logits = torch.tensor([[-torch.inf, 0.0, 3.0, -torch.inf]])
    tokens, logprobs = draw(logits, torch.tensor([noise]).double(), Sampling(1))
    assert tokens.item() in {1, 2}
    assert logprobs.isfinite().all()


def test_noise_depends_on_seed_and_sample_alone() -> None:
    together = uniforms(_uints(5, 2**64 - 1, 5), _uints(0, 3, 1), 16)
    assert together.min() >= 0
    assert together.max() < 1
    assert torch.equal(uniforms(_uints(2**64 - 1), _uints(3), 16)[0], together[1])
    assert torch.equal(uniforms(_uints(5), _uints(1), 4)[0], together[2, :4])
    assert len(together.unique()) == together.numel()


def test_neighbouring_seeds_and_samples_are_uncorrelated() -> None:
    grid = [(seed, sample) for seed in range(16) for sample in range(16)]
    noise = uniforms(_uints(*(s for s, _ in grid)), _uints(*(j for _, j in grid)), 1000)
    correlation = torch.corrcoef(noise) - torch.eye(len(grid))
    assert correlation.abs().max() < 0.2
    assert abs(noise.mean() - 0.5) < 0.002
