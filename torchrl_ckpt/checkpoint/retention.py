"""Removes committed checkpoints that are no longer kept; runs only after a commit."""

from __future__ import annotations

import logging
import math
import shutil
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Literal

from torchrl_ckpt.checkpoint.commit import out_of_sight
from torchrl_ckpt.checkpoint.layout import Layout
from torchrl_ckpt.config.ckpt import CheckpointConfig
from torchrl_ckpt.run.attempt import Attempt
from torchrl_ckpt.run.metrics import values_by_step

_log = logging.getLogger(__name__)


def prune(layout: Layout, rules: Retention) -> list[int]:
    """Remove the steps that `rules` do not keep and say which went.

    A failed deletion is warned of and tried again the next time.
    """
    # Where all are kept there may be thousands, and nothing to ask of any.
    verdicts = [] if rules.keep is None else judge(layout.steps(), rules)
    return remove(layout, [verdict.step for verdict in verdicts if not verdict.kept])


def remove(layout: Layout, steps: Iterable[int]) -> list[int]:
    """Remove committed `steps`, and what is left of earlier deletions; says which steps went."""
    removed = []
    for directory in [*layout.deletions().values(), *layout.outdated().values()]:
        with _tried_again(directory.name):
            shutil.rmtree(directory)
    for step in steps:
        with _tried_again(layout.step(step).name):
            out_of_sight(layout, step)
            shutil.rmtree(layout.deleting(step))
            removed.append(step)
    return removed


@contextmanager
def _tried_again(name: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        _log.warning("could not remove checkpoint %s, will try again: %s", name, error)


def is_due(step: int, *, interval: int | None, last: bool) -> bool:
    """Whether to save after `step`: every `interval` steps, and always after the last one."""
    return last or (interval is not None and step % interval == 0)


@dataclass(frozen=True)
class Best:
    """Keep the `count` steps with the best value of a metric.

    `values` holds what is known, by step. A step without a finite value is never best; of equal
    values the later step's is.
    """

    metric: str
    direction: Literal["min", "max"]
    count: int
    values: Mapping[int, float] = field(default_factory=dict)

    def steps(self, candidates: Collection[int]) -> set[int]:
        """The best of `candidates`."""
        sign = 1 if self.direction == "max" else -1
        valued = [step for step in candidates if math.isfinite(self.values.get(step, math.nan))]
        valued.sort(key=lambda step: (sign * self.values[step], step))
        return set(valued[-self.count :])


@dataclass(frozen=True)
class Retention:
    """The rules: a step that any of them names is kept. Without `keep` every step is."""

    keep: int | None = None
    keep_every: int | None = None
    best: Best | None = None
    resume_step: int | None = None


@dataclass(frozen=True)
class Verdict:
    """Whether a step is kept. `reasons` are the rules that keep it, or what it failed by each."""

    step: int
    kept: bool
    reasons: tuple[str, ...]


def judge(steps: Collection[int], rules: Retention) -> list[Verdict]:
    """The verdict on every committed step, oldest first.

    The newest step and the one resumed from are always kept.
    """
    ordered = sorted(steps)
    if rules.keep is None:
        return [Verdict(step, True, ("`keep` is unset",)) for step in ordered]
    newest = set(ordered[-rules.keep :])
    best = rules.best.steps(ordered) if rules.best else set()
    return [_verdict(step, rules, newest, best) for step in ordered]


def _verdict(step: int, rules: Retention, newest: set[int], best: set[int]) -> Verdict:
    for_it: list[str] = []
    against: list[str] = []
    (for_it if step in newest else against).append(f"newest {rules.keep}")
    if rules.keep_every is not None:
        (against if step % rules.keep_every else for_it).append(f"every {rules.keep_every}")
    if rules.best is not None:
        value = rules.best.values.get(step)
        if value is None:
            against.append(f"best {rules.best.metric} (it has none)")
        else:
            known = f"{rules.best.metric} {value:.4g}"
            (for_it if step in best else against).append(f"best {known}")
    if step == rules.resume_step:
        for_it.append("resumed from")
    if for_it:
        return Verdict(step, True, tuple(for_it))
    return Verdict(step, False, tuple(f"not {reason}" for reason in against))


def retention_rules(attempt: Attempt) -> Retention:
    """The rules of the attempt's `ckpt`, with the values so far of the metric in `keep_best`."""
    ckpt = attempt.ckpt or CheckpointConfig()
    best = None
    if (wanted := ckpt.keep_best) is not None:
        values = values_by_step(attempt.run.metrics, wanted.component, wanted.metric)
        best = Best(wanted.metric, wanted.direction, wanted.count, values)
    return Retention(ckpt.keep, ckpt.keep_every, best, attempt.resume_step)
