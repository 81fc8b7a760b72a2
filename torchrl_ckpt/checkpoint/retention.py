"""Which committed checkpoints are kept, and the deletion of the others.

`prune` runs after each commit: `judge` decides by the rules, `remove` deletes. The command
`torchrl-ckpt ckpt prune` calls the two itself, to show the verdicts first.
"""

from __future__ import annotations

import logging
import math
import shutil
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Literal

from torchrl_ckpt.checkpoint.commit import begin_deletion
from torchrl_ckpt.checkpoint.layout import Layout
from torchrl_ckpt.config.ckpt import CheckpointConfig
from torchrl_ckpt.run.attempt import Attempt
from torchrl_ckpt.run.metrics import values_by_step

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Best:
    """Keep the `count` steps with the best value of a metric.

    `values` are the known values by step. A step without a finite value is never among the best; of
    equal values, the later step's is better.
    """

    metric: str
    direction: Literal["min", "max"]
    count: int
    values: Mapping[int, float] = field(default_factory=dict)

    def steps(self, candidates: Collection[int]) -> set[int]:
        """Return the best of `candidates`."""
        sign = 1 if self.direction == "max" else -1
        valued = [step for step in candidates if math.isfinite(self.values.get(step, math.nan))]
        valued.sort(key=lambda step: (sign * self.values[step], step))
        return set(valued[-self.count :])


@dataclass(frozen=True)
class Retention:
    """The rules. A step is kept if any of them names it; without `keep` every step is."""

    keep: int | None = None
    keep_every: int | None = None
    best: Best | None = None
    resume_step: int | None = None


@dataclass(frozen=True)
class Verdict:
    """Whether a step is kept. `reasons` are the rules that keep it, or all that do not."""

    step: int
    kept: bool
    reasons: tuple[str, ...]


def retention_rules(attempt: Attempt) -> Retention:
    """Return the rules of the attempt's `ckpt`, with the values so far of `keep_best`'s metric."""
    ckpt = attempt.ckpt or CheckpointConfig()
    best = None
    if (option := ckpt.keep_best) is not None:
        values = values_by_step(attempt.run.metrics, option.component, option.metric)
        best = Best(option.metric, option.direction, option.count, values)
    return Retention(ckpt.keep, ckpt.keep_every, best, attempt.resume_step)


def judge(steps: Collection[int], rules: Retention) -> list[Verdict]:
    """Return the verdict on each of `steps`, which are all that are committed, oldest first.

    The newest step and the one that the run was resumed from are always kept.
    """
    ordered = sorted(steps)
    if rules.keep is None:
        return [Verdict(step, True, ("`keep` is unset",)) for step in ordered]
    newest = set(ordered[-rules.keep :])
    best = rules.best.steps(ordered) if rules.best else set()
    return [_verdict(step, rules, newest, best) for step in ordered]


def _verdict(step: int, rules: Retention, newest: set[int], best: set[int]) -> Verdict:
    keeping: list[str] = []
    not_keeping: list[str] = []
    (keeping if step in newest else not_keeping).append(f"newest {rules.keep}")
    if rules.keep_every is not None:
        (not_keeping if step % rules.keep_every else keeping).append(f"every {rules.keep_every}")
    if rules.best is not None:
        value = rules.best.values.get(step)
        if value is None:
            not_keeping.append(f"best {rules.best.metric} (it has none)")
        else:
            rule = f"best {rules.best.metric} {value:.4g}"
            (keeping if step in best else not_keeping).append(rule)
    if step == rules.resume_step:
        keeping.append("resumed from")
    if keeping:
        return Verdict(step, True, tuple(keeping))
    return Verdict(step, False, tuple(f"not {rule}" for rule in not_keeping))


def prune(layout: Layout, rules: Retention) -> list[int]:
    """Delete the steps that `rules` do not keep; return those that were deleted.

    A deletion that fails is logged and tried again by the next prune.
    """
    # Without `keep` there may be thousands of steps, and none is to be deleted.
    verdicts = [] if rules.keep is None else judge(layout.steps(), rules)
    return remove(layout, [verdict.step for verdict in verdicts if not verdict.kept])


def remove(layout: Layout, steps: Iterable[int]) -> list[int]:
    """Delete committed `steps` and the remains of earlier deletions; return the deleted steps.

    A deletion that fails is logged.
    """
    removed = []
    for directory in [*layout.deletions().values(), *layout.outdated().values()]:
        with _logged_failure(directory.name):
            shutil.rmtree(directory)
    for step in steps:
        with _logged_failure(layout.step(step).name):
            begin_deletion(layout, step)
            shutil.rmtree(layout.deleting(step))
            removed.append(step)
    return removed


@contextmanager
def _logged_failure(name: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        _log.warning("could not remove checkpoint %s, will try again: %s", name, error)
