"""A save on a full or failing disk is reported and commits nothing, and training continues."""

from __future__ import annotations

from itertools import cycle
from pathlib import Path

import pytest

from tests.support.faults.scenario import Scenario, save_scenarios
from tests.support.faults.scenario_trials import Errno, ScenarioTrials, TrialsOf
from tests.support.faults.strace import sample


def fail_at(trials: ScenarioTrials, count: int) -> None:
    """Let calls fail at about `count` fault points, in turn with ENOSPC and EIO."""
    errors: tuple[Errno, ...] = ("ENOSPC", "EIO")
    points = sample(trials.fault_points, count)
    done = [trials.fail(point, error) for point, error in zip(points, cycle(errors), strict=False)]
    assert [str(trial) for trial in done if trial.violations] == []


def saved_by_threads(backend: str) -> Scenario:
    """A save by three writer threads, then a prune."""
    return save_scenarios(backend, {"threads": 3})[1]


@pytest.mark.parametrize("backend", ["dcp", "async_dcp"])
def test_no_save_with_a_failing_call_is_committed(backend: str, trials_of: TrialsOf) -> None:
    fail_at(trials_of(save_scenarios(backend)[1]), 8)


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["dcp", "async_dcp"])
def test_a_failing_call_of_any_writer_thread_is_reported(backend: str, trials_of: TrialsOf) -> None:
    fail_at(trials_of(saved_by_threads(backend)), 16)


def test_each_writer_thread_writes_a_file(trials_of: TrialsOf) -> None:
    """Otherwise the trials with three threads would not reach all of them."""
    writes = [
        point for point in trials_of(saved_by_threads("dcp")).fault_points if point.name == "write"
    ]
    written = {Path(point.path).name for point in writes}
    assert {"__0_0.distcp", "__0_1.distcp", "__0_2.distcp"} <= written
