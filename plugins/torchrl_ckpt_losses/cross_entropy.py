"""Cross entropy, the loss of supervised fine-tuning."""

from __future__ import annotations

import torch

from torchrl_ckpt.plugin_api.losses import LossInputs, LossOutput
from torchrl_ckpt_losses.token_logprobs import masked_sum, token_logprobs


class CrossEntropy:
    """Mean negative log-likelihood of the target tokens, in nats per token.

    Metric: `token_accuracy`, the share of targets that are the most likely token.
    """

    plugin_api = 1
    requires: frozenset[str] = frozenset()

    def __call__(self, inputs: LossInputs) -> LossOutput:
        logprobs = token_logprobs(inputs.logits, inputs.targets)
        loss = -masked_sum(logprobs, inputs.mask) / inputs.num_tokens
        with torch.no_grad():
            hits = (inputs.logits.argmax(-1) == inputs.targets).float()
            accuracy = masked_sum(hits, inputs.mask) / inputs.num_tokens
        return LossOutput(loss, {"token_accuracy": accuracy}, logprobs.detach())
