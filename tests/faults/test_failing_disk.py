"""A save that meets a full or failing disk says so, commits nothing, and training goes on."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.faults.invariants import Promise
from tests.support.faults.saver import Saver
from tests.support.faults.scenario import save_scenarios
from tests.support.faults.scenario_trials import Errno, Scenario, Stage
from tests.support.faults.strace import sample

pytestmark = pytest.mark.usefixtures("needs_strace")


def fail_at(
    count: int,
    error: Errno,
    scenario: Scenario,
    saver: Saver,
    promise: Promise,
    tmp_path: Path,
) -> None:
    stage = Stage(scenario, saver, promise, tmp_path)
    trials = [stage.fail(call, error) for call in sample(stage.calls, count)]
    assert [str(trial) for trial in trials if trial.broken] == []


@pytest.mark.parametrize("backend", ["dcp", "async_dcp"])
def test_no_failing_call_is_taken_for_a_good_save(
    backend: str, saver: Saver, promise: Promise, tmp_path: Path
) -> None:
    fail_at(8, "ENOSPC", save_scenarios(backend)[1], saver, promise, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("error", ["ENOSPC", "EIO"])
@pytest.mark.parametrize("backend", ["dcp", "async_dcp"])
def test_no_writer_thread_fails_unheard(
    backend: str, error: Errno, saver: Saver, promise: Promise, tmp_path: Path
) -> None:
    fail_at(12, error, save_scenarios(backend, {"threads": 3})[1], saver, promise, tmp_path)


def test_each_writer_thread_has_its_file(saver: Saver, promise: Promise, tmp_path: Path) -> None:
    """Otherwise the tests above would not reach them."""
    stage = Stage(save_scenarios("dcp", {"threads": 3})[1], saver, promise, tmp_path)
    written = {Path(call.path).name for call in stage.calls if call.name == "write"}
    assert {"__0_0.distcp", "__0_1.distcp", "__0_2.distcp"} <= written
