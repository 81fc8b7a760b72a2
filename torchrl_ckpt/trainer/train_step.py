"""One update of the parameters from one batch: forward, loss, backward, clip, step."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.distributed.fsdp import FSDPModule
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from torchrl_ckpt.config.trainer import PackingConfig
from torchrl_ckpt.plugin_api.losses import Loss, LossInputs
from torchrl_ckpt.trainer.distributed import World
from torchrl_ckpt.trainer.packing import MicroBatch, TrainSample, micro_batch, pack


@dataclass(frozen=True)
class TrainStepResult:
    """What an update did, over all ranks. `tokens` were gone through, `learned` were targets."""

    loss: float
    grad_norm: float
    lr: float
    samples: int
    tokens: int
    learned: int
    metrics: dict[str, float]


class TrainStep:
    """Applies batches to a sharded model.

    The loss of a batch is the sum over its micro-batches and ranks, so how the samples are spread
    changes nothing but rounding. `before_change` is called when the parameters are about to change:
    a save that copies them beside the forward and backward pass must have done so by then.
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
        *,
        before_change: Callable[[], None] = lambda: None,
    ) -> None:
        self._model = model
        self._before_change = before_change
        self._loss = loss
        self._optimizer = optimizer
        self._scheduler = scheduler
        self._packing = packing
        self._max_norm = max_norm
        self._world = world

    def update(self, samples: Sequence[TrainSample], temperature: float) -> TrainStepResult:
        """Train on this rank's `samples` of a batch whose logits are divided by `temperature`."""
        rows = pack(samples, self._packing.length)
        tokens = sum(len(sample.token_ids) for sample in samples)
        learned = sum(sample.num_learned for sample in samples)
        counts = self._world.sum([len(samples), tokens, learned])
        num_samples, num_tokens, num_learned = (int(count) for count in counts)
        # FSDP's collectives want as many forward passes of every rank.
        passes = int(self._world.max(-(-len(rows) // self._packing.rows)))

        sums: dict[str, torch.Tensor] = {}
        for index in range(passes):
            self._accumulate_only(index < passes - 1)
            chosen = rows[index * self._packing.rows : (index + 1) * self._packing.rows]
            batch = micro_batch(chosen, self._packing.length).to(self._world.device)
            output = self._loss(self._inputs(batch, temperature, max(1, num_learned), num_samples))
            # FSDP averages gradients over the ranks; the loss is to be summed.
            (output.loss * self._world.size).backward()
            for name, value in {"loss": output.loss, **output.metrics}.items():
                sums[name] = sums.get(name, 0.0) + value.detach().double()

        parameters = list(self._model.parameters())
        norm: Any = torch.nn.utils.clip_grad_norm_(parameters, self._max_norm or float("inf"))
        lr = float(self._scheduler.get_last_lr()[0])
        self._before_change()
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

    def _inputs(
        self, batch: MicroBatch, temperature: float, num_tokens: int, num_samples: int
    ) -> LossInputs:
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

    def _accumulate_only(self, yes: bool) -> None:
        if isinstance(self._model, FSDPModule):
            self._model.set_requires_gradient_sync(not yes)
