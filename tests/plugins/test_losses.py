"""The losses are the published formulas, summed over micro-batches."""

from __future__ import annotations

import math

import pytest
import torch
from torchrl_ckpt_losses.cross_entropy import CrossEntropy
from torchrl_ckpt_losses.grpo import Grpo, GrpoConfig

from torchrl_ckpt.plugin_api.losses import LossInputs


def make_inputs(**changes: object) -> LossInputs:
    generator = torch.Generator().manual_seed(0)
    rows, length, vocabulary = 3, 5, 7
    mask = torch.rand(rows, length, generator=generator) < 0.6
    values: dict[str, object] = {
        "logits": torch.randn(rows, length, vocabulary, generator=generator, requires_grad=True),
        "targets": torch.randint(vocabulary, (rows, length), generator=generator),
        "mask": mask,
        "documents": torch.zeros(rows, length, dtype=torch.int64),
        "num_tokens": int(mask.sum()),
        "num_samples": rows,
        "advantages": torch.randn(rows, length, generator=generator),
        "old_logprobs": -torch.rand(rows, length, generator=generator) * 3,
    }
    return LossInputs(**{**values, **changes})  # type: ignore[arg-type]


def micro_batch(batch: LossInputs, row: int) -> LossInputs:
    """Return one row of a batch as a micro-batch."""
    parts = {
        name: value[row : row + 1] if isinstance(value, torch.Tensor) else value
        for name, value in vars(batch).items()
    }
    return LossInputs(**parts)


def test_cross_entropy_is_the_mean_over_learned_tokens() -> None:
    batch = make_inputs()
    expected = torch.nn.functional.cross_entropy(
        batch.logits[batch.mask], batch.targets[batch.mask]
    )
    assert CrossEntropy()(batch).loss.item() == pytest.approx(expected.item(), rel=1e-6)


@pytest.mark.parametrize("loss", [CrossEntropy(), Grpo(GrpoConfig())])
def test_micro_batches_add_up_to_the_batch(loss: CrossEntropy | Grpo) -> None:
    batch = make_inputs()
    whole, parts = loss(batch), [loss(micro_batch(batch, row)) for row in range(3)]
    assert sum(part.loss.item() for part in parts) == pytest.approx(whole.loss.item(), rel=1e-5)
    for name, value in whole.metrics.items():
        summed = sum(part.metrics[name].item() for part in parts)
        assert summed == pytest.approx(value.item(), rel=1e-5, abs=1e-7)


@pytest.mark.parametrize("loss", [CrossEntropy(), Grpo(GrpoConfig())])
def test_masked_tokens_give_no_gradient_even_if_they_are_nan(loss: CrossEntropy | Grpo) -> None:
    batch = make_inputs()
    assert batch.old_logprobs is not None
    batch.old_logprobs[~batch.mask] = math.nan
    loss(batch).loss.backward()
    gradient = batch.logits.grad
    assert gradient is not None
    assert torch.isfinite(gradient).all()
    assert gradient[~batch.mask].abs().max() == 0


def test_grpo_on_policy_is_the_policy_gradient() -> None:
    batch = make_inputs()
    logprobs = batch.logits.log_softmax(-1).gather(-1, batch.targets[..., None]).squeeze(-1)
    on_policy = make_inputs(logits=batch.logits, old_logprobs=logprobs.detach())
    loss = Grpo(GrpoConfig())(on_policy).loss
    assert on_policy.advantages is not None
    mean_advantage = on_policy.advantages[on_policy.mask].mean().item()
    assert loss.item() == pytest.approx(-mean_advantage, rel=1e-5)
    (gradient,) = torch.autograd.grad(loss, batch.logits)
    reinforce = -(logprobs * on_policy.advantages)[on_policy.mask].mean()
    (expected,) = torch.autograd.grad(reinforce, batch.logits)
    torch.testing.assert_close(gradient, expected)


def test_grpo_cuts_the_gradient_outside_the_clip_range() -> None:
    logits = torch.zeros(1, 2, 2, requires_grad=True)
    half = math.log(0.5)
    batch = make_inputs(
        logits=logits,
        targets=torch.zeros(1, 2, dtype=torch.int64),
        mask=torch.ones(1, 2, dtype=torch.bool),
        documents=torch.zeros(1, 2, dtype=torch.int64),
        # Both ratios are 2. With a positive advantage the loss is clipped; with a negative one it
        # is not, since clipping would stop the policy from correcting a mistake.
        old_logprobs=torch.tensor([[half - math.log(2), half - math.log(2)]]),
        advantages=torch.tensor([[1.0, -1.0]]),
        num_tokens=2,
    )
    output = Grpo(GrpoConfig(clip_low=0.2, clip_high=0.3))(batch)
    assert output.loss.item() == pytest.approx(-(1.3 - 2.0) / 2)
    assert output.metrics["clip_fraction"].item() == pytest.approx(0.5)
    output.loss.backward()
    assert logits.grad is not None
    assert logits.grad[0, 0].abs().max() == 0
    assert logits.grad[0, 1].abs().max() > 0
