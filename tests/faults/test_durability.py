"""Whatever a commit makes visible would survive a power failure at that moment.

A kill does not show what a power failure could take away; the order of the system calls does.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import PurePosixPath

import pytest

from tests.support.faults.scenario import save_scenarios
from tests.support.faults.scenario_trials import TrialsOf
from tests.support.faults.strace import (
    MAKES,
    OPENS,
    REMOVES,
    RENAMES,
    RESIZES,
    SYNCS,
    WRITES,
    FaultPoint,
)


def not_durable(calls: Iterable[FaultPoint]) -> set[str]:
    """Return the files and directories that were changed and not synced since.

    Removals do not count: it does no harm if a removed name is back after a power failure. A rename
    counts for the directory that it starts from, since none here leaves its directory.
    """
    changed: set[str] = set()
    for call in calls:
        if call.name in WRITES + RESIZES:
            changed.add(call.path)
        elif call.name in OPENS + MAKES + RENAMES:
            changed.add(str(PurePosixPath(call.path).parent))
        elif call.name in SYNCS:
            changed.discard(call.path)
    return changed


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("backend", ["dcp", "async_dcp"])
def test_everything_is_synced_before_the_commit_and_the_commit_before_any_removal(
    backend: str, threads: int, trials_of: TrialsOf
) -> None:
    trials = trials_of(save_scenarios(backend, {"threads": threads})[1])
    calls = trials.fault_points
    commit = next(index for index, call in enumerate(calls) if trials.is_commit(call))
    removal = next(index for index, call in enumerate(calls) if call.name in REMOVES)
    assert commit < removal
    assert not_durable(calls[:commit]) == set()
    assert not_durable(calls[:removal]) == set()


def test_a_change_that_is_not_synced_is_found() -> None:
    made = FaultPoint("mkdir", "checkpoints/a", 1)
    opened = FaultPoint("openat", "checkpoints/a/file", 1)
    written = FaultPoint("write", "checkpoints/a/file", 1)
    synced = [FaultPoint("fsync", path, 1) for path in ("checkpoints", "checkpoints/a")]
    assert not_durable([made, opened, written, *synced]) == {"checkpoints/a/file"}
    assert not_durable([made, opened, *synced[:1]]) == {"checkpoints/a"}
