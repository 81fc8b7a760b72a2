"""Group relative policy optimisation (GRPO), the loss of reinforcement learning."""

from __future__ import annotations

from typing import Annotated

import torch
from pydantic import BaseModel, ConfigDict, Field

from torchrl_ckpt.plugin_api.losses import LossInputs, LossOutput
from torchrl_ckpt_losses.token_logprobs import masked_sum, token_logprobs


class GrpoConfig(BaseModel):
    """Options of `grpo`."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    clip_low: Annotated[float, Field(ge=0, lt=1)] = 0.2
    """How far below 1 the ratio of the policies may lie before the gradient is clipped."""

    clip_high: Annotated[float, Field(ge=0)] = 0.2
    """How far above 1 the ratio of the policies may lie before the gradient is clipped."""


class Grpo:
    """The clipped surrogate objective on group-relative advantages, averaged over tokens.

    -mean(min(r A, clip(r, 1 - clip_low, 1 + clip_high) A)) with r the ratio of the policy to the
    one that generated the token (PPO, arXiv:1707.06347, equation 7; GRPO, arXiv:2402.03300,
    equation 3 without its KL term; token mean as in DAPO, arXiv:2503.14476, equation 8).

    Metrics: `clip_fraction`, the share of tokens whose gradient is clipped; `kl`, an estimate of
    KL(old || new) in nats per token (r - 1 - log r, which is never negative); `entropy` of the
    policy in nats; `logprob_difference`, the mean absolute difference to the generating engine.
    """

    plugin_api = 1
    requires = frozenset({"advantages", "old_logprobs"})
    Config = GrpoConfig

    def __init__(self, config: GrpoConfig) -> None:
        self._low = 1.0 - config.clip_low
        self._high = 1.0 + config.clip_high

    def __call__(self, inputs: LossInputs) -> LossOutput:
        assert inputs.advantages is not None
        assert inputs.old_logprobs is not None
        mask, advantages = inputs.mask, inputs.advantages
        logprobs = token_logprobs(inputs.logits, inputs.targets)
        # Outside the mask there is no old log-probability; 0 keeps exp() finite there.
        log_ratio = torch.where(mask, logprobs - inputs.old_logprobs, 0.0)
        ratio = log_ratio.exp()
        clipped = ratio.clamp(self._low, self._high)
        surrogate = torch.minimum(ratio * advantages, clipped * advantages)
        loss = -masked_sum(surrogate, mask) / inputs.num_tokens
        with torch.no_grad():
            is_clipped = (clipped * advantages < ratio * advantages).float()
            probabilities = inputs.logits.float().log_softmax(-1)
            entropy = -(probabilities.exp() * probabilities).sum(-1)
            metrics = {
                "clip_fraction": is_clipped,
                "kl": ratio - 1 - log_ratio,
                "entropy": entropy,
                "logprob_difference": log_ratio.abs(),
            }
        return LossOutput(
            loss,
            {name: masked_sum(value, mask) / inputs.num_tokens for name, value in metrics.items()},
            logprobs.detach(),
        )
