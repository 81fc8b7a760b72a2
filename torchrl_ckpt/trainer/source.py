"""Sources of batches: what the training loop needs of one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from torchrl_ckpt.plugin_api.plugin import Json
from torchrl_ckpt.trainer.packing import TrainSample


@dataclass(frozen=True)
class DrawnBy:
    """How the engine drew the samples, where it had the very policy that is being trained.

    `dtype` is what it computes in, if known. Sampling from the likeliest tokens alone may have
    raised its log-probabilities by up to `truncation` nats, which may be infinite.
    """

    dtype: str | None
    truncation: float


@dataclass(frozen=True)
class TrainBatch:
    """This rank's share of a step's samples.

    Logits are divided by `temperature`, as they were when the samples were drawn. `metrics` go into
    the step's row of metrics unchanged. `drawn_by` is None where another policy drew the samples.
    """

    samples: Sequence[TrainSample]
    temperature: float = 1.0
    metrics: Mapping[str, float] = field(default_factory=dict)
    drawn_by: DrawnBy | None = None


class BatchSource(Protocol):
    """Provides the batch of each step. Its state is the position in the data, the same for every
    number of ranks."""

    provides: frozenset[str]
    """What its samples have for a loss: `advantages`, `old_logprobs`."""

    def batch(self, step: int) -> TrainBatch | None:
        """Return the batch of `step`; None where the run is asked to stop while it waits."""
        ...

    def put_back(self) -> None:
        """Undo the last `batch`, even one that has failed: it was not trained on."""
        ...

    def state_dict(self) -> Json: ...

    def load_state_dict(self, state: Json) -> None: ...
