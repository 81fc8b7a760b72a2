"""A kill during a save, a prune or a restart loses no committed step and leaves no partial one
listed."""

from __future__ import annotations

from typing import Any

import pytest

from tests.support.faults.scenario import Scenario, restart_scenarios, save_scenarios
from tests.support.faults.scenario_trials import ScenarioTrials, TrialsOf
from tests.support.faults.strace import sample


def kill_at(trials: ScenarioTrials, count: int) -> None:
    done = [trials.kill(point) for point in sample(trials.fault_points, count)]
    assert [str(trial) for trial in done if trial.violations] == []


def saves() -> list[Any]:
    """Return the saves of both backends; all but those with a prune are marked slow."""
    return [
        pytest.param(
            scenario,
            id=f"{backend}: {scenario}",
            marks=[] if scenario.name == "a save, then a prune" else [pytest.mark.slow],
        )
        for backend in ("dcp", "async_dcp")
        for scenario in save_scenarios(backend)
    ]


@pytest.mark.parametrize("scenario", saves())
def test_a_kill_during_a_save_loses_no_step(scenario: Scenario, trials_of: TrialsOf) -> None:
    kill_at(trials_of(scenario), 16)


@pytest.mark.slow
def test_a_kill_during_a_save_by_several_threads_loses_no_step(trials_of: TrialsOf) -> None:
    kill_at(trials_of(save_scenarios("dcp", {"threads": 3})[1]), 16)


@pytest.mark.parametrize("scenario", restart_scenarios("dcp"), ids=str)
def test_a_kill_during_a_restart_loses_no_step(scenario: Scenario, trials_of: TrialsOf) -> None:
    kill_at(trials_of(scenario), 10)


def test_a_writer_or_committer_that_dies_is_replaced_and_its_save_reported_as_failed(
    trials_of: TrialsOf,
) -> None:
    trials = trials_of(save_scenarios("async_dcp")[1])
    points = [point for point in trials.fault_points if point.process > 0]
    assert {point.process for point in points} == {1, 2}
    done = [trials.kill_worker(point) for point in sample(points, 8)]
    assert [str(trial) for trial in done if trial.violations] == []
