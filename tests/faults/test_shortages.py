"""A save during which the disk, its inodes, descriptors or memory run out, or a process stands
still for a while, loses no step, and training goes on."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.faults import small_disk, strace
from tests.support.faults.invariants import Invariants
from tests.support.faults.saver import Saver
from tests.support.faults.scenario import save_scenarios
from tests.support.faults.scenario_trials import ScenarioTrials, TrialsOf
from tests.support.faults.shortage import SHORTAGES
from tests.support.faults.strace import sample


@pytest.fixture(name="disk")
def mount_small_disk(tmp_path: Path) -> Iterator[Path]:
    if reason := strace.unavailable() or small_disk.unavailable():
        pytest.skip(reason)
    with small_disk.small_disk(tmp_path / "disk", "64m", inodes=5000) as disk:
        yield disk


@pytest.mark.parametrize(
    ("backend", "count"),
    [("async_dcp", 1), pytest.param("dcp", 6, marks=pytest.mark.slow)],
)
def test_a_save_that_runs_out_of_something_commits_nothing_and_training_goes_on(
    backend: str, count: int, disk: Path, saver: Saver, invariants: Invariants
) -> None:
    trials = ScenarioTrials(save_scenarios(backend)[1], saver, invariants, disk)
    points = [p for p in sample(trials.fault_points, count) if "tensors" in p.path or count > 1]
    done = [trials.run_short(point, shortage) for point in points for shortage in SHORTAGES]
    assert done
    assert [str(trial) for trial in done if trial.violations] == []


def test_a_process_that_stands_still_for_a_while_saves_as_if_nothing_had_happened(
    trials_of: TrialsOf,
) -> None:
    trials = trials_of(save_scenarios("async_dcp")[1])
    done = [trials.pause(point) for point in sample(trials.fault_points, 1)]
    assert [str(trial) for trial in done if trial.violations] == []


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["dcp", "async_dcp"])
def test_a_kill_of_either_of_two_ranks_or_their_workers_loses_no_step(
    backend: str, trials_of: TrialsOf
) -> None:
    trials = trials_of(save_scenarios(backend, ranks=2)[1])
    assert {point.process for point in trials.fault_points} == (
        {0, 1} if backend == "dcp" else {0, 1, 2, 3, 4}
    )
    done = [trials.kill(point) for point in sample(trials.fault_points, 6)]
    assert [str(trial) for trial in done if trial.violations] == []
