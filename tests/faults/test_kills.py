"""A kill during a save, a prune or a restart loses no committed step and leaves no partial one
listed."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.faults.invariants import Invariants
from tests.support.faults.saver import Saver
from tests.support.faults.scenario import Scenario, restart_scenarios, save_scenarios
from tests.support.faults.scenario_trials import ScenarioTrials
from tests.support.faults.strace import sample

pytestmark = pytest.mark.usefixtures("needs_strace")

BACKENDS = ["dcp", "async_dcp"]
SAVES = [scenario for backend in BACKENDS for scenario in save_scenarios(backend)]
SAVES_OF_THREE_THREADS = save_scenarios("dcp", {"threads": 3})


def kill_at(
    count: int, scenario: Scenario, saver: Saver, invariants: Invariants, tmp_path: Path
) -> None:
    trials = ScenarioTrials(scenario, saver, invariants, tmp_path)
    done = [trials.kill(point) for point in sample(trials.fault_points, count)]
    assert [str(trial) for trial in done if trial.violations] == []


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_kill_during_save_and_prune_loses_no_step(
    backend: str, saver: Saver, invariants: Invariants, tmp_path: Path
) -> None:
    kill_at(16, save_scenarios(backend)[1], saver, invariants, tmp_path)


@pytest.mark.parametrize("scenario", restart_scenarios("dcp"), ids=str)
def test_a_kill_during_a_restart_loses_no_step(
    scenario: Scenario, saver: Saver, invariants: Invariants, tmp_path: Path
) -> None:
    kill_at(10, scenario, saver, invariants, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("scenario", SAVES, ids=lambda s: f"{s.options.backend}: {s}")
def test_a_kill_anywhere_in_a_save_loses_no_step(
    scenario: Scenario, saver: Saver, invariants: Invariants, tmp_path: Path
) -> None:
    kill_at(16, scenario, saver, invariants, tmp_path)


def test_a_writer_or_committer_that_dies_is_replaced_and_its_save_reported_as_failed(
    saver: Saver, invariants: Invariants, tmp_path: Path
) -> None:
    trials = ScenarioTrials(save_scenarios("async_dcp")[1], saver, invariants, tmp_path)
    points = [point for point in trials.fault_points if point.process > 0]
    assert {point.process for point in points} == {1, 2}
    done = [trials.kill_worker(point) for point in sample(points, 8)]
    assert [str(trial) for trial in done if trial.violations] == []


@pytest.mark.slow
def test_a_kill_among_several_writer_threads_loses_no_step(
    saver: Saver, invariants: Invariants, tmp_path: Path
) -> None:
    kill_at(16, SAVES_OF_THREE_THREADS[1], saver, invariants, tmp_path)
