"""A process that is killed while it saves, prunes or restarts loses nothing that was committed, and
leaves nothing that is half there."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.faults.invariants import Promise
from tests.support.faults.saver import Saver
from tests.support.faults.scenario import restart_scenarios, save_scenarios
from tests.support.faults.scenario_trials import Scenario, Stage
from tests.support.faults.strace import sample

pytestmark = pytest.mark.usefixtures("needs_strace")

BACKENDS = ["dcp", "async_dcp"]
SAVES = [scenario for backend in BACKENDS for scenario in save_scenarios(backend)]
SAVES_OF_THREE_THREADS = save_scenarios("dcp", {"threads": 3})


def kill_at(count: int, scenario: Scenario, saver: Saver, promise: Promise, tmp_path: Path) -> None:
    stage = Stage(scenario, saver, promise, tmp_path)
    trials = [stage.kill(call) for call in sample(stage.calls, count)]
    assert [str(trial) for trial in trials if trial.broken] == []


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_kill_during_save_and_prune_loses_no_step(
    backend: str, saver: Saver, promise: Promise, tmp_path: Path
) -> None:
    kill_at(16, save_scenarios(backend)[1], saver, promise, tmp_path)


@pytest.mark.parametrize("scenario", restart_scenarios("dcp"), ids=str)
def test_a_kill_during_a_restart_loses_no_step(
    scenario: Scenario, saver: Saver, promise: Promise, tmp_path: Path
) -> None:
    kill_at(10, scenario, saver, promise, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("scenario", SAVES, ids=lambda s: f"{s.options.backend}: {s}")
def test_a_kill_anywhere_in_a_save_loses_no_step(
    scenario: Scenario, saver: Saver, promise: Promise, tmp_path: Path
) -> None:
    kill_at(16, scenario, saver, promise, tmp_path)


def test_a_writer_or_committer_that_dies_is_replaced_and_its_save_reported(
    saver: Saver, promise: Promise, tmp_path: Path
) -> None:
    stage = Stage(save_scenarios("async_dcp")[1], saver, promise, tmp_path)
    calls = [call for call in stage.calls if call.process > 0]
    assert {call.process for call in calls} == {1, 2}
    trials = [stage.lose(call) for call in sample(calls, 8)]
    assert [str(trial) for trial in trials if trial.broken] == []


@pytest.mark.slow
def test_a_kill_among_several_writer_threads_loses_no_step(
    saver: Saver, promise: Promise, tmp_path: Path
) -> None:
    kill_at(16, SAVES_OF_THREE_THREADS[1], saver, promise, tmp_path)
