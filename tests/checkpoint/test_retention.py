"""Retention removes what it may, says why, and never the newest step or the one resumed from."""

from __future__ import annotations

import math
import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.support.plain_checkpoint import Save
from torchrl_ckpt.checkpoint.layout import Layout
from torchrl_ckpt.checkpoint.retention import (
    Best,
    Retention,
    judge,
    prune,
    retention_rules,
)
from torchrl_ckpt.config.ckpt import CheckpointConfig, KeepBestConfig
from torchrl_ckpt.run.attempt import Attempt
from torchrl_ckpt.run.metrics import MetricsLog

STEPS = [2, 4, 6, 8, 10]


def kept(steps: list[int], **rules: Any) -> list[int]:
    return [verdict.step for verdict in judge(steps, Retention(**rules)) if verdict.kept]


@pytest.mark.parametrize(
    ("rules", "left"),
    [
        ({}, STEPS),
        ({"keep_every": 4}, STEPS),
        ({"keep": 3}, [6, 8, 10]),
        ({"keep": 1}, [10]),
        ({"keep": 1, "keep_every": 4}, [4, 8, 10]),
        ({"keep": 1, "resume_step": 2}, [2, 10]),
        ({"keep": 1, "resume_step": 7}, [10]),
        ({"keep": 9}, STEPS),
    ],
)
def test_a_step_that_any_rule_names_is_kept(rules: dict[str, int], left: list[int]) -> None:
    assert kept(STEPS, **rules) == left


@pytest.mark.parametrize(
    ("values", "direction", "count", "best"),
    [
        ({2: 0.5, 4: 0.9, 6: 0.7}, "max", 1, [4]),
        ({2: 0.5, 4: 0.9, 6: 0.7}, "min", 2, [2, 6]),
        ({2: 0.9, 4: 0.9, 6: 0.1}, "max", 1, [4]),
        ({2: 0.1, 4: 0.1, 6: 0.9}, "min", 1, [4]),
        ({2: math.nan, 4: math.inf, 6: 0.1}, "max", 1, [6]),
        ({2: math.nan}, "max", 3, []),
        ({}, "max", 1, []),
        ({3: 1.0, 2: 0.2}, "max", 1, [2]),
    ],
)
def test_the_best_is_a_committed_step_with_a_finite_value_the_later_of_equals(
    values: dict[int, float], direction: Any, count: int, best: list[int]
) -> None:
    rule = Best("reward/mean", direction, count, values)
    assert kept([2, 4, 6, 8], keep=1, best=rule) == [*best, 8]


def test_every_verdict_has_its_reasons() -> None:
    rule = Best("reward/mean", "max", 1, {2: 0.831, 4: 0.5})
    verdicts = judge([1, 2, 4, 8], Retention(keep=1, keep_every=4, best=rule, resume_step=1))
    assert [(verdict.kept, *verdict.reasons) for verdict in verdicts] == [
        (True, "resumed from"),
        (True, "best reward/mean 0.831"),
        (True, "every 4"),
        (True, "newest 1", "every 4"),
    ]
    not_kept = judge([2, 3, 4], Retention(keep=1, keep_every=4, best=rule))[1]
    assert not_kept.reasons == ("not newest 1", "not every 4", "not best reward/mean (it has none)")


def test_a_deletion_that_cannot_begin_is_logged_and_tried_again(
    layout: Layout, save: Save, caplog: pytest.LogCaptureFixture
) -> None:
    save(1)
    save(2)
    layout.deleting(1).write_text("A file here stands in the way of the rename.")
    assert prune(layout, Retention(keep=1)) == []
    assert "could not remove checkpoint step_1, will try again" in caplog.text
    assert layout.steps() == [1, 2]
    layout.deleting(1).unlink()
    assert prune(layout, Retention(keep=1)) == [1]
    assert layout.steps() == [2]


def test_an_interrupted_deletion_is_not_listed_and_finished_by_the_next(
    layout: Layout, save: Save, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(path: Path) -> None:
        raise PermissionError("no")

    save(1)
    save(2)
    with monkeypatch.context() as broken:
        broken.setattr(shutil, "rmtree", refuse)
        prune(layout, Retention(keep=1))
    assert "step_1" in caplog.text
    assert layout.steps() == [2]
    assert list(layout.deletions()) == [1]
    prune(layout, Retention(keep=1))
    assert layout.leftovers() == []


def test_pruning_a_directory_that_does_not_exist_yet_does_nothing(layout: Layout) -> None:
    assert prune(layout, Retention(keep=1)) == []


def test_the_rules_are_those_of_the_attempt_with_the_metrics_so_far(tmp_path: Path) -> None:
    best = KeepBestConfig(metric="reward/mean", component="evaluation", direction="max", count=2)
    attempt = Attempt(
        output_dir=tmp_path,
        number=2,
        max_steps=9,
        resume_step=4,
        ckpt=CheckpointConfig(keep=3, keep_every=5, keep_best=best),
    )
    metrics = MetricsLog(attempt.run.metrics)
    metrics.write("trainer", 5, {"reward/mean": 9.0})
    metrics.write("evaluation", 5, {"reward/mean": 0.5, "exact/mean": 0.1})
    metrics.write("evaluation", 6, {"reward/mean": math.inf})
    rules = retention_rules(attempt)
    assert (rules.keep, rules.keep_every, rules.resume_step) == (3, 5, 4)
    assert rules.best == Best("reward/mean", "max", 2, {5: 0.5, 6: math.inf})
