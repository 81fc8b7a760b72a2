"""Whatever a commit makes visible would outlast a power failure at that moment."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.faults.durability import not_durable
from tests.support.faults.invariants import Promise
from tests.support.faults.saver import Saver
from tests.support.faults.scenario import save_scenarios
from tests.support.faults.scenario_trials import Stage
from tests.support.faults.strace import REMOVES, Call

pytestmark = pytest.mark.usefixtures("needs_strace")


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("backend", ["dcp", "async_dcp"])
def test_everything_is_synced_before_the_commit_and_the_commit_before_any_removal(
    backend: str, threads: int, saver: Saver, promise: Promise, tmp_path: Path
) -> None:
    scenario = save_scenarios(backend, {"threads": threads})[1]
    stage = Stage(scenario, saver, promise, tmp_path)
    commit = next(index for index, call in enumerate(stage.calls) if stage.commits(call))
    removal = next(index for index, call in enumerate(stage.calls) if call.name in REMOVES)
    assert commit < removal
    assert not_durable(stage.calls[:commit]) == set()
    assert not_durable(stage.calls[:removal]) == set()


def test_what_is_not_synced_is_noticed() -> None:
    made = Call("mkdir", "checkpoints/a", 1)
    opened = Call("openat", "checkpoints/a/file", 1)
    written = Call("write", "checkpoints/a/file", 1)
    synced = [Call("fsync", path, 1) for path in ("checkpoints", "checkpoints/a")]
    assert not_durable([made, opened, written, *synced]) == {"checkpoints/a/file"}
    assert not_durable([made, opened, *synced[:1]]) == {"checkpoints/a"}
