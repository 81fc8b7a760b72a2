"""Whether a step's numbers may change the model: judged after the backward pass, before the update.

The loss and the gradients must be finite. Where the policy that is trained is the one that drew the
tokens, the engine's log-probabilities of them must be the trainer's: that covers what a canary
does not, the engine's decoding with its cache, at every position.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch.distributed.tensor import DTensor

from torchrl_ckpt.plugin_api.losses import LossInputs, LossOutput
from torchrl_ckpt.trainer.packing import TrainSample
from torchrl_ckpt.trainer.source import TrainBatch

# The largest mean and the largest single difference of log-probabilities between engine and trainer
# at temperature 1, in nats. Measured differences are in docs/serving.md. In 16 bits an unlikely
# token may be far off, so only the mean is bounded there.
_FLOAT32_BOUNDS = (1e-4, 1e-3)
_16_BIT_BOUNDS = (0.1, math.inf)
_16_BIT_DTYPES = ("bfloat16", "float16")

_NAMES_SHOWN = 4


@dataclass(frozen=True)
class UpdateLimits:
    """The limits of an update; the options of the same names are in `config/trainer.py`."""

    max_norm: float | None = None
    on_nonfinite: Literal["stop", "skip"] = "stop"
    logprob_tolerance: float | None = None


@dataclass(frozen=True)
class _Pass:
    """A micro-batch: its packed samples, its share of the loss, and `[rows, length]` numbers.

    `excess` is by how much the engine's log-probability is further from the trainer's than its way
    of sampling explains.
    """

    rows: Sequence[Sequence[TrainSample]]
    loss: torch.Tensor
    logprobs: torch.Tensor | None
    old_logprobs: torch.Tensor | None
    excess: torch.Tensor | None


class UpdateCheck:
    """The numbers of one rank's share of a batch, collected micro-batch after micro-batch."""

    def __init__(self, batch: TrainBatch, limits: UpdateLimits) -> None:
        self._batch = batch
        self._limits = limits
        self._passes: list[_Pass] = []
        self._dtype = "float32"

    def add(
        self, rows: Sequence[Sequence[TrainSample]], inputs: LossInputs, output: LossOutput
    ) -> None:
        """Take note of a micro-batch that consists of `rows`. Waits for no computation."""
        self._dtype = str(inputs.logits.dtype).removeprefix("torch.")
        logprobs = None if output.logprobs is None else output.logprobs.detach()
        excess = None
        if self._batch.drawn_by is not None and inputs.old_logprobs is not None:
            if logprobs is None:
                logprobs = _target_logprobs(inputs)
            excess = self._excess(inputs.old_logprobs - logprobs, inputs.mask)
        self._passes.append(
            _Pass(rows, output.loss.detach(), logprobs, inputs.old_logprobs, excess)
        )

    @property
    def compares_logprobs(self) -> bool:
        """Whether the engine's log-probabilities are checked; the same on all ranks."""
        return self._batch.drawn_by is not None

    def excess(self) -> tuple[float, float]:
        """The sum and the maximum over this rank's tokens, in nats."""
        found = [of_pass.excess for of_pass in self._passes if of_pass.excess is not None]
        if not found:
            return 0.0, 0.0
        total = torch.stack([excess.double().sum() for excess in found]).sum()
        return total.item(), torch.stack([excess.max() for excess in found]).max().item()

    def bounds(self) -> tuple[float, float]:
        """The largest allowed mean and maximum of `excess`, in nats."""
        if self._limits.logprob_tolerance is not None:
            return self._limits.logprob_tolerance, math.inf
        assert self._batch.drawn_by is not None
        is_coarse = {self._dtype, self._batch.drawn_by.dtype} & set(_16_BIT_DTYPES)
        mean, largest = _16_BIT_BOUNDS if is_coarse else _FLOAT32_BOUNDS
        scale = max(1.0, 1.0 / self._batch.temperature)  # The logits were divided by it.
        return mean * scale, largest * scale

    def describe_worst_token(self) -> str:
        """Name this rank's token with the largest excess, with both numbers."""
        worst, text = -1.0, "no token on this rank"
        for of_pass in self._passes:
            if of_pass.excess is None or not of_pass.rows:
                continue
            assert of_pass.logprobs is not None
            assert of_pass.old_logprobs is not None
            value, place = of_pass.excess.flatten().max(0)
            if not value.item() <= worst:
                worst = value.item()
                row, column = divmod(int(place), of_pass.excess.shape[1])
                text = (
                    f"{_describe_token(of_pass.rows[row], column + 1)}: the engine's "
                    f"log-probability is {of_pass.old_logprobs[row, column].item():.6f}, the "
                    f"trainer's {of_pass.logprobs[row, column].item():.6f}"
                )
        return text

    def describe_nonfinite(self, parameters: Iterable[tuple[str, torch.nn.Parameter]]) -> list[str]:
        """List this rank's numbers that are not finite: losses with their samples, gradients."""
        faults = []
        for number, of_pass in enumerate(self._passes, start=1):
            if not of_pass.loss.isfinite().all():
                faults.append(
                    f"the loss of micro-batch {number} of {len(self._passes)} is "
                    f"{of_pass.loss.item()} ({_samples_of(of_pass)})"
                )
        names = [name for name, parameter in parameters if _has_nonfinite_gradient(parameter)]
        if names:
            faults.append(f"the gradient of {_shortened(names)} is not finite")
        return faults

    def _excess(self, difference: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """`difference` is the engine's log-probability minus the trainer's.

        Sampling from the likeliest tokens alone raises the probabilities of those.
        """
        assert self._batch.drawn_by is not None
        above = difference - self._batch.drawn_by.truncation
        return torch.where(mask, torch.maximum(-difference, above).clamp(min=0), 0.0)


@torch.no_grad()
def _target_logprobs(inputs: LossInputs) -> torch.Tensor:
    """The log-probability of each target that counts, and 0 elsewhere; `[rows, length]`."""
    logprobs = torch.zeros(inputs.mask.shape, device=inputs.logits.device)
    chosen = inputs.logits[inputs.mask].float().log_softmax(-1)
    logprobs[inputs.mask] = chosen.gather(-1, inputs.targets[inputs.mask][:, None])[:, 0]
    return logprobs


def _has_nonfinite_gradient(parameter: torch.nn.Parameter) -> bool:
    if parameter.grad is None:
        return False
    gradient = parameter.grad
    local = gradient.to_local() if isinstance(gradient, DTensor) else gradient
    return not bool(local.isfinite().all())


def _samples_of(of_pass: _Pass) -> str:
    """The samples of a micro-batch; those with log-probabilities that are not finite, if any."""
    samples = [sample for row in of_pass.rows for sample in row]
    if of_pass.logprobs is not None:
        suspects = {
            id(sample): sample
            for row, column in (~of_pass.logprobs.isfinite()).nonzero().tolist()
            if row < len(of_pass.rows)
            and (sample := _sample_at(of_pass.rows[row], column + 1)[0]) is not None
        }
        samples = list(suspects.values()) or samples
    names = list(dict.fromkeys(sample.name or "a sample without a name" for sample in samples))
    return f"its samples: {_shortened(names)}" if names else "it has no samples"


def _sample_at(row: Sequence[TrainSample], position: int) -> tuple[TrainSample | None, int]:
    """The sample at `position` of a packed row, and which of its tokens that is, from 0."""
    for sample in row:
        if position < len(sample.token_ids):
            return sample, position
        position -= len(sample.token_ids)
    return None, position


def _describe_token(row: Sequence[TrainSample], position: int) -> str:
    sample, token = _sample_at(row, position)
    if sample is None:
        return "padding"
    return (
        f"token {token + 1} of {len(sample.token_ids)} (id {sample.token_ids[token]}) of "
        f"{sample.name or 'a sample without a name'}"
    )


def _shortened(names: Sequence[str]) -> str:
    more = f" and {len(names) - _NAMES_SHOWN} more" if len(names) > _NAMES_SHOWN else ""
    return ", ".join(names[:_NAMES_SHOWN]) + more
