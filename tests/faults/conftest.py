"""What the fault tests share: the fork server, and scenarios that are recorded once."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.faults import strace
from tests.support.faults.invariants import Invariants
from tests.support.faults.saver import Saver
from tests.support.faults.scenario import Scenario
from tests.support.faults.scenario_trials import ScenarioTrials, TrialsOf
from tests.support.one_rank_world import one_rank_world


@pytest.fixture(scope="package", name="saver")
def start_saver() -> Iterator[Saver]:
    saver = Saver()
    yield saver
    saver.close()


@pytest.fixture(scope="package", name="invariants")
def make_invariants(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Invariants]:
    with one_rank_world() as world:
        yield Invariants(world, tmp_path_factory.mktemp("expected"))


@pytest.fixture(scope="package", name="trials_of")
def make_trials_of(
    saver: Saver, invariants: Invariants, tmp_path_factory: pytest.TempPathFactory
) -> TrialsOf:
    """Return the trials of a scenario; skip the test where strace cannot be used."""
    if reason := strace.unavailable():
        pytest.skip(reason)
    recorded: dict[str, ScenarioTrials] = {}

    def trials_of(scenario: Scenario) -> ScenarioTrials:
        key = repr(scenario)
        if key not in recorded:
            directory = tmp_path_factory.mktemp("trials")
            recorded[key] = ScenarioTrials(scenario, saver, invariants, directory)
        return recorded[key]

    return trials_of
