"""What the recipe says to keep, with the metric's values so far. Needs no torch."""

from __future__ import annotations

from pathlib import Path

from torchrl_ckpt.checkpoint.policy import Best, Retention
from torchrl_ckpt.observe.metrics import values_by_step
from torchrl_ckpt.recipe.schema import Checkpointing


def retention(config: Checkpointing, metrics: Path) -> Retention:
    """The rules of `config`. `metrics` is the run's `metrics.jsonl`."""
    best = None
    if (wanted := config.keep_best) is not None:
        values = values_by_step(metrics, wanted.component, wanted.metric)
        best = Best(wanted.metric, wanted.direction, wanted.count, values)
    resumed_from = config.resume_step if isinstance(config.resume_step, int) else None
    return Retention(config.keep, config.keep_every, best, resumed_from)
