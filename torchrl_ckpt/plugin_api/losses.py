"""Loss plugins: from logits and targets to a scalar and metrics."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar, Protocol

from torchrl_ckpt.plugin_api.plugin import Plugin

if TYPE_CHECKING:
    import torch


class Loss(Plugin, Protocol):
    """Computes a micro-batch's share of the loss and of the metrics of the whole batch."""

    requires: ClassVar[frozenset[str]]
    """Which of `advantages` and `old_logprobs` it needs."""

    def __call__(self, inputs: LossInputs) -> LossOutput: ...


@dataclass(frozen=True)
class LossInputs:
    """One micro-batch, shifted so that position t of every tensor is about the same target token.

    Shapes: `logits` `[rows, length, vocabulary]` (already divided by the sampling temperature);
    all others `[rows, length]`. `mask` is true where a target counts. `documents` numbers the
    samples within each row from 0, with -1 for padding. `advantages` and `old_logprobs` (natural
    log, under the policy that generated the tokens) are there only for a loss that requires them.
    `num_tokens` and `num_samples` count the whole global batch, over all micro-batches and ranks.
    """

    logits: torch.Tensor
    targets: torch.Tensor
    mask: torch.Tensor
    documents: torch.Tensor
    num_tokens: int
    num_samples: int
    advantages: torch.Tensor | None = None
    old_logprobs: torch.Tensor | None = None


@dataclass(frozen=True)
class LossOutput:
    """`loss` and `metrics` of all micro-batches and ranks are *summed* to those of the batch.

    `logprobs` `[rows, length]` are the natural-log probabilities of the targets. A loss that has
    computed them should return them: the trainer compares them with the engine's, and computes them
    once more if they are missing.
    """

    loss: torch.Tensor
    metrics: Mapping[str, torch.Tensor] = field(default_factory=dict)
    logprobs: torch.Tensor | None = None
