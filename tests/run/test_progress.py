"""A component's progress events reach the reader of the file."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from torchrl_ckpt.run.progress import ProgressLog, ProgressMessage, ProgressTail, TaskUpdate


def test_a_task_is_reported_from_its_start_to_its_end(tmp_path: Path) -> None:
    tail = ProgressTail(tmp_path / "p")
    with ProgressLog(tmp_path / "p", "orchestrator").task("rollouts", total=1024):
        (started,) = tail.read()
    (ended,) = tail.read()
    assert isinstance(started, TaskUpdate)
    assert isinstance(ended, TaskUpdate)
    assert (started.component, started.task, started.completed, started.total, started.ended) == (
        ("orchestrator", "rollouts", 0, 1024, False)
    )
    assert ended.ended


def test_a_task_ends_even_when_it_fails(tmp_path: Path) -> None:
    log = ProgressLog(tmp_path / "p", "trainer")
    with pytest.raises(OSError, match="disk"), log.task("checkpoint", total=10, unit="bytes"):
        raise OSError("disk")
    events = ProgressTail(tmp_path / "p").read()
    assert [event.ended for event in events if isinstance(event, TaskUpdate)] == [False, True]


def test_updates_may_be_frequent_without_filling_the_file(tmp_path: Path) -> None:
    with ProgressLog(tmp_path / "p", "trainer").task("checkpoint", total=10_000) as task:
        for completed in range(10_000):
            task.update(completed)
    assert len(ProgressTail(tmp_path / "p").read()) < 20


def test_a_message_is_in_the_log_as_well(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        ProgressLog(tmp_path / "p", "trainer").message("checkpoint step_20 committed")
        ProgressLog(tmp_path / "p", "trainer").message("step_30 is damaged", "warning")
    events = ProgressTail(tmp_path / "p").read()
    assert [event.message for event in events if isinstance(event, ProgressMessage)] == [
        "checkpoint step_20 committed",
        "step_30 is damaged",
    ]
    assert [record.levelname for record in caplog.records] == ["INFO", "WARNING"]
