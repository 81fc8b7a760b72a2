"""One step of training: forward and backward over a batch, clipping, the optimiser's update."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch.distributed.fsdp import FSDPModule
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from torchrl_ckpt.config.trainer import PackingConfig
from torchrl_ckpt.plugin_api.losses import Loss, LossInputs
from torchrl_ckpt.trainer.distributed import World
from torchrl_ckpt.trainer.packing import MicroBatch, micro_batch, pack
from torchrl_ckpt.trainer.source import TrainBatch


@dataclass(frozen=True)
class TrainStepResult:
    """What a step did, over all ranks: samples, all their `tokens`, and the `learned` ones, which
    are targets. `metrics` are the loss's own."""

    loss: float
    grad_norm: float
    lr: float
    samples: int
    tokens: int
    learned: int
    metrics: dict[str, float]


class TrainStep:
    """Trains a sharded model on one batch after another.

    The loss of a batch is the sum over its micro-batches and ranks, so how the samples are spread
    over them changes nothing but rounding. Gradients are clipped to `max_norm`, if given.
    """

    def __init__(
        self,
        model: torch.nn.Module,
        loss: Loss,
        optimizer: Optimizer,
        scheduler: LRScheduler,
        packing: PackingConfig,
        max_norm: float | None,
        world: World,
    ) -> None:
        self._model = model
        self._loss = loss
        self._optimizer = optimizer
        self._scheduler = scheduler
        self._packing = packing
        self._max_norm = max_norm
        self._world = world

    def __call__(
        self, batch: TrainBatch, *, before_change: Callable[[], object] = lambda: None
    ) -> TrainStepResult:
        """Train on this rank's share of a batch; collective.

        `before_change` is called right before the parameters change: a save that copies them during
        the forward and backward passes must be done with that by then.
        """
        rows = pack(batch.samples, self._packing.length)
        counts = self._world.sum(
            [
                len(batch.samples),
                sum(len(sample.token_ids) for sample in batch.samples),
                sum(sample.num_learned for sample in batch.samples),
            ]
        )
        num_samples, num_tokens, num_learned = (int(count) for count in counts)
        # FSDP's collectives need the same number of forward passes on every rank.
        passes = int(self._world.max(-(-len(rows) // self._packing.rows)))

        sums: dict[str, torch.Tensor] = {}
        for index in range(passes):
            self._sync_gradients(index == passes - 1)
            chosen = rows[index * self._packing.rows : (index + 1) * self._packing.rows]
            inputs = micro_batch(chosen, self._packing.length).to(self._world.device)
            output = self._loss(
                self._forward(inputs, batch.temperature, max(1, num_learned), num_samples)
            )
            # FSDP averages gradients over the ranks; the loss is to be summed.
            (output.loss * self._world.size).backward()
            for name, value in {"loss": output.loss, **output.metrics}.items():
                sums[name] = sums.get(name, 0.0) + value.detach().double()

        parameters = list(self._model.parameters())
        norm: Any = torch.nn.utils.clip_grad_norm_(parameters, self._max_norm or float("inf"))
        lr = float(self._scheduler.get_last_lr()[0])
        before_change()
        self._optimizer.step()
        self._scheduler.step()
        self._optimizer.zero_grad(set_to_none=True)

        totals = dict(zip(sums, self._world.sum([v.item() for v in sums.values()]), strict=True))
        return TrainStepResult(
            loss=totals.pop("loss"),
            grad_norm=(norm.full_tensor() if hasattr(norm, "full_tensor") else norm).item(),
            lr=lr,
            samples=num_samples,
            tokens=num_tokens,
            learned=num_learned,
            metrics=totals,
        )

    def _forward(
        self, batch: MicroBatch, temperature: float, num_tokens: int, num_samples: int
    ) -> LossInputs:
        """Compute the logits `[rows, length, vocabulary]` and shift everything to the targets."""
        logits = self._model(input_ids=batch.input_ids, position_ids=batch.position_ids)
        return LossInputs(
            logits=logits[:, :-1] / temperature,
            targets=batch.input_ids[:, 1:],
            mask=batch.learned[:, 1:],
            documents=batch.documents[:, 1:],
            num_tokens=num_tokens,
            num_samples=num_samples,
            advantages=batch.advantages[:, 1:],
            old_logprobs=batch.old_logprobs[:, 1:],
        )

    def _sync_gradients(self, enabled: bool) -> None:
        """Reduce gradients over the ranks in the next backward pass, or only accumulate them."""
        if isinstance(self._model, FSDPModule):
            self._model.set_requires_gradient_sync(enabled)
