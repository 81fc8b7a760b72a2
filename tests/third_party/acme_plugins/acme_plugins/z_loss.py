"""The loss `acme_z_loss`: cross-entropy with a penalty on the normaliser of the softmax."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch
from pydantic import Field
from torch.nn.functional import cross_entropy

from torchrl_ckpt.plugin_api.losses import LossInputs, LossOutput


@dataclass(frozen=True)
class ZLossConfig:
    """Options of `acme_z_loss`."""

    coefficient: Annotated[
        float, Field(ge=0, description="Weight of the regularisation; 0 is plain cross-entropy.")
    ] = 1e-4


class ZLoss:
    """Cross-entropy that keeps the logits from drifting, in nats per token.

    -mean(log p(target)) + coefficient * mean(log(Z)^2) with Z the sum of the exponentiated logits
    (PaLM, arXiv:2204.02311, section 5). Metrics: `cross_entropy` and `z_loss`, its two terms.
    """

    plugin_api = 1
    requires: frozenset[str] = frozenset()
    Config = ZLossConfig

    def __init__(self, config: ZLossConfig) -> None:
        self._coefficient = config.coefficient

    def __call__(self, inputs: LossInputs) -> LossOutput:
        logits = inputs.logits[inputs.mask].float()  # [counted targets, vocabulary]
        nll = cross_entropy(logits, inputs.targets[inputs.mask], reduction="sum")
        log_z = torch.logsumexp(logits, dim=-1)
        nll = nll / inputs.num_tokens
        z_loss = self._coefficient * log_z.square().sum() / inputs.num_tokens
        metrics = {"cross_entropy": nll.detach(), "z_loss": z_loss.detach()}
        return LossOutput(nll + z_loss, metrics)
