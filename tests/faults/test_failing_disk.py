"""A save on a full or failing disk is reported and commits nothing, and training continues."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.faults.invariants import Invariants
from tests.support.faults.saver import Saver
from tests.support.faults.scenario import Scenario, save_scenarios
from tests.support.faults.scenario_trials import Errno, ScenarioTrials
from tests.support.faults.strace import sample

pytestmark = pytest.mark.usefixtures("needs_strace")


def fail_at(
    count: int,
    error: Errno,
    scenario: Scenario,
    saver: Saver,
    invariants: Invariants,
    tmp_path: Path,
) -> None:
    trials = ScenarioTrials(scenario, saver, invariants, tmp_path)
    done = [trials.fail(point, error) for point in sample(trials.fault_points, count)]
    assert [str(trial) for trial in done if trial.violations] == []


@pytest.mark.parametrize("backend", ["dcp", "async_dcp"])
def test_no_save_with_a_failing_call_is_committed(
    backend: str, saver: Saver, invariants: Invariants, tmp_path: Path
) -> None:
    fail_at(8, "ENOSPC", save_scenarios(backend)[1], saver, invariants, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("error", ["ENOSPC", "EIO"])
@pytest.mark.parametrize("backend", ["dcp", "async_dcp"])
def test_a_failing_call_of_any_writer_thread_is_reported(
    backend: str, error: Errno, saver: Saver, invariants: Invariants, tmp_path: Path
) -> None:
    fail_at(12, error, save_scenarios(backend, {"threads": 3})[1], saver, invariants, tmp_path)


def test_each_writer_thread_writes_a_file(
    saver: Saver, invariants: Invariants, tmp_path: Path
) -> None:
    """Otherwise the trials with three threads would not reach all of them."""
    trials = ScenarioTrials(save_scenarios("dcp", {"threads": 3})[1], saver, invariants, tmp_path)
    writes = [point for point in trials.fault_points if point.name == "write"]
    written = {Path(point.path).name for point in writes}
    assert {"__0_0.distcp", "__0_1.distcp", "__0_2.distcp"} <= written
