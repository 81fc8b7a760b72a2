"""One step of training: forward and backward over a batch, clipping, the optimiser's update."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.fsdp import FSDPModule
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from torchrl_ckpt.config.trainer import PackingConfig
from torchrl_ckpt.plugin_api import heartbeat
from torchrl_ckpt.plugin_api.collectives import gather_json
from torchrl_ckpt.plugin_api.errors import NotFinite, WrongPolicy
from torchrl_ckpt.plugin_api.losses import Loss, LossInputs
from torchrl_ckpt.trainer.distributed import World
from torchrl_ckpt.trainer.packing import MicroBatch, micro_batch, pack
from torchrl_ckpt.trainer.source import TrainBatch
from torchrl_ckpt.trainer.update_check import UpdateCheck, UpdateLimits

# Where so many updates in a row are skipped, the next ones will hardly be better.
_MAX_SKIPPED_IN_A_ROW = 10

_WHAT_TO_LOOK_AT = (
    "The parameters are those of the step before. Look at the samples, at `optim.lr`, "
    "`optim.max_norm` and `scheduler.warmup_steps`, and at the dtype, whose range may be too small"
)


@dataclass(frozen=True)
class TrainStepResult:
    """What a step did, over all ranks: samples, all their `tokens`, and the `learned` ones, which
    are targets. `metrics` are the loss's own. `skipped` says why the parameters did not change, if
    they did not."""

    loss: float
    grad_norm: float
    lr: float
    samples: int
    tokens: int
    learned: int
    metrics: dict[str, float]
    skipped: str | None = None


class TrainStep:
    """Trains a sharded model on one batch after another.

    The loss of a batch is the sum over its micro-batches and ranks, so how the samples are spread
    over them changes nothing but rounding. Gradients are clipped to the `max_norm` of `limits`, if
    given.
    """

    def __init__(
        self,
        model: torch.nn.Module,
        loss: Loss,
        optimizer: Optimizer,
        scheduler: LRScheduler,
        packing: PackingConfig,
        limits: UpdateLimits,
        world: World,
    ) -> None:
        self._model = model
        self._loss = loss
        self._optimizer = optimizer
        self._scheduler = scheduler
        self._packing = packing
        self._limits = limits
        self._world = world
        self._skipped_in_a_row = 0

    def __call__(
        self, step: int, batch: TrainBatch, *, before_change: Callable[[], object] = lambda: None
    ) -> TrainStepResult:
        """Train on this rank's share of the batch of `step`; collective.

        Raises `NotFinite` or `WrongPolicy` on all ranks, before anything has changed, where the
        numbers are beyond the limits.

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
        check = UpdateCheck(batch, self._limits)
        for index in range(passes):
            self._sync_gradients(index == passes - 1)
            chosen = rows[index * self._packing.rows : (index + 1) * self._packing.rows]
            inputs = micro_batch(chosen, self._packing.length).to(self._world.device)
            loss_inputs = self._forward(inputs, batch.temperature, max(1, num_learned), num_samples)
            output = self._loss(loss_inputs)
            # FSDP averages gradients over the ranks; the loss is to be summed.
            (output.loss * self._world.size).backward()
            for name, value in {"loss": output.loss, **output.metrics}.items():
                sums[name] = sums.get(name, 0.0) + value.detach().double()
            check.add(chosen, loss_inputs, output)
            heartbeat.beat()

        parameters = list(self._model.parameters())
        norm: Any = torch.nn.utils.get_total_norm(
            [p.grad for p in parameters if p.grad is not None]
        )
        grad_norm = (norm.full_tensor() if hasattr(norm, "full_tensor") else norm).item()
        totals = dict(zip(sums, self._world.sum([v.item() for v in sums.values()]), strict=True))
        fault = self._nonfinite(step, check, totals["loss"], grad_norm)
        if fault is None:
            self._compare_with_engine(step, check, num_learned)
            if self._limits.max_norm is not None:
                torch.nn.utils.clip_grads_with_norm_(parameters, self._limits.max_norm, norm)
        lr = float(self._scheduler.get_last_lr()[0])
        if fault is None:
            before_change()
            self._optimizer.step()
        self._scheduler.step()
        self._optimizer.zero_grad(set_to_none=True)
        return TrainStepResult(
            loss=totals.pop("loss"),
            grad_norm=grad_norm,
            lr=lr,
            samples=num_samples,
            tokens=num_tokens,
            learned=num_learned,
            metrics=totals,
            skipped=fault,
        )

    def _nonfinite(
        self, step: int, check: UpdateCheck, loss: float, grad_norm: float
    ) -> str | None:
        """Say what is not finite, where an update is to be skipped for it; else None.

        Collective, with the same result on all ranks. Raises `NotFinite` where it ends the run.
        """
        # A model that is not sharded may have another norm on each rank.
        if not self._world.max(float(not (math.isfinite(loss) and math.isfinite(grad_norm)))):
            self._skipped_in_a_row = 0
            return None
        found = check.describe_nonfinite(self._model.named_parameters())
        faults = "; ".join(self._told_by_ranks("; ".join(found)))
        text = (
            f"step {step} has numbers that are not finite (loss {loss}, gradient norm "
            f"{grad_norm}): {faults or 'each of them is finite, but the norm overflows'}"
        )
        self._skipped_in_a_row += 1
        if self._limits.on_nonfinite == "stop":
            raise NotFinite(
                f"{text}. {_WHAT_TO_LOOK_AT}. `on_nonfinite` of the trainer can skip such updates"
            )
        if self._skipped_in_a_row == _MAX_SKIPPED_IN_A_ROW:
            raise NotFinite(
                f"{_MAX_SKIPPED_IN_A_ROW} updates in a row were skipped; the last one: {text}. "
                f"{_WHAT_TO_LOOK_AT}"
            )
        return text

    def _compare_with_engine(self, step: int, check: UpdateCheck, num_learned: int) -> None:
        """Raise `WrongPolicy` where the engine's log-probabilities are not this policy's.

        Collective: it raises on all ranks or on none.
        """
        if not check.compares_logprobs:
            return
        total, largest = check.excess()
        mean = self._world.sum([total])[0] / max(1, num_learned)
        largest = self._world.max(largest)
        mean_bound, largest_bound = check.bounds()
        # NaN must not pass.
        if mean <= mean_bound and largest <= largest_bound:
            return
        worst = "; ".join(self._told_by_ranks(check.describe_worst_token()))
        raise WrongPolicy(
            f"step {step}: the engine drew the tokens with other log-probabilities than the policy "
            f"of step {step - 1}, which it should serve: on average {mean:.2e} nats apart (at most "
            f"{mean_bound:.0e} is allowed), the largest difference is {largest:.2e} (at most "
            f"{largest_bound:.0e}). The worst token: {worst}. The answer to the canary was right, "
            "so look at the engine's decoding: its cache, long positions, dtype, and sampling "
            "options (`logprob_tolerance` of the trainer sets the limit)"
        )

    def _told_by_ranks(self, text: str) -> list[str]:
        """What the ranks have to say, by rank; those with nothing are left out."""
        if self._world.size == 1:
            return [text] if text else []
        group = dist.group.WORLD
        assert group is not None
        texts = gather_json(text, group)
        return [f"on rank {rank}: {told}" for rank, told in enumerate(texts) if told]

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
