"""Retention removes what it may and never the newest step or the one resumed from."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from torchrl_ckpt.checkpoint import retention
from torchrl_ckpt.checkpoint.layout import Layout
from torchrl_ckpt.checkpoint.policy import expendable, is_due
from torchrl_ckpt.checkpoint.retention import prune

Save = Callable[[int], Path]


@pytest.mark.parametrize(
    ("keep", "keep_every", "protected", "left"),
    [
        (None, None, [], [2, 4, 6, 8, 10]),
        (3, None, [], [6, 8, 10]),
        (1, None, [], [10]),
        (1, 4, [], [4, 8, 10]),
        (1, None, [2], [2, 10]),
        (9, None, [], [2, 4, 6, 8, 10]),
    ],
)
def test_what_is_kept(
    keep: int | None, keep_every: int | None, protected: list[int], left: list[int]
) -> None:
    steps = [2, 4, 6, 8, 10]
    gone = expendable(steps, keep=keep, keep_every=keep_every, protected=protected)
    assert [step for step in steps if step not in gone] == left


def test_only_the_last_step_is_due_without_an_interval() -> None:
    assert [step for step in range(1, 7) if is_due(step, interval=None, last=step == 6)] == [6]
    assert [step for step in range(1, 8) if is_due(step, interval=3, last=step == 7)] == [3, 6, 7]


def test_a_failed_deletion_is_warned_of_and_tried_again(
    layout: Layout, save: Save, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    for step in (1, 2):
        save(step)
    with monkeypatch.context() as broken:
        broken.setattr(retention, "out_of_sight", _refuse)
        assert prune(layout, keep=1, keep_every=None, protected=[]) == []
    assert "step_1" in caplog.text
    assert prune(layout, keep=1, keep_every=None, protected=[]) == [1]
    assert layout.steps() == [2]


def test_pruning_a_directory_that_is_not_there_yet_does_nothing(layout: Layout) -> None:
    assert prune(layout, keep=1, keep_every=None, protected=[]) == []


def _refuse(*_: object) -> None:
    raise PermissionError("no")
