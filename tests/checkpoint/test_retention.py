"""Retention removes what it may, says why, and never the newest step or the one resumed from."""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from torchrl_ckpt.checkpoint import retention
from torchrl_ckpt.checkpoint.layout import Layout
from torchrl_ckpt.checkpoint.retention import Best, Retention, is_due, judge, prune

Save = Callable[[int], Path]

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
def test_the_best_is_of_the_steps_there_are_the_later_of_equals_and_finite(
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
    gone = judge([2, 3, 4], Retention(keep=1, keep_every=4, best=rule))[1]
    assert gone.reasons == ("not newest 1", "not every 4", "not best reward/mean (it has none)")


def test_only_the_last_step_is_due_without_an_interval() -> None:
    assert [step for step in range(1, 7) if is_due(step, interval=None, last=step == 6)] == [6]
    assert [step for step in range(1, 8) if is_due(step, interval=3, last=step == 7)] == [3, 6, 7]


def test_a_deletion_that_cannot_begin_is_warned_of_and_tried_again(
    layout: Layout, save: Save, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    save(1)
    save(2)
    with monkeypatch.context() as broken:
        broken.setattr(retention, "out_of_sight", _refuse)
        assert prune(layout, Retention(keep=1)) == []
    assert "could not remove checkpoint step_1, will try again" in caplog.text
    assert prune(layout, Retention(keep=1)) == [1]
    assert layout.steps() == [2]


def test_a_deletion_that_stops_half_way_is_out_of_sight_and_ended_by_the_next(
    layout: Layout, save: Save, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    save(1)
    save(2)
    with monkeypatch.context() as broken:
        broken.setattr(shutil, "rmtree", _refuse)
        prune(layout, Retention(keep=1))
    assert "step_1" in caplog.text
    assert layout.steps() == [2]
    assert list(layout.deletions()) == [1]
    prune(layout, Retention(keep=1))
    assert layout.leftovers() == []


def test_pruning_a_directory_that_is_not_there_yet_does_nothing(layout: Layout) -> None:
    assert prune(layout, Retention(keep=1)) == []


def _refuse(*_: object, **__: object) -> None:
    raise PermissionError("no")
