"""Whatever a commit makes visible would survive a power failure at that moment.

A kill does not show what a power failure could take away; the order of the system calls does.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path, PurePosixPath

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
    fault_points,
    recording,
    unavailable,
)
from tests.support.waiting import wait_until


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


PUBLISH = """
import sys
from pathlib import Path
from tests.support.rollouts import metadata, rollout
from torchrl_ckpt.run.rollout_store import RolloutStore
from torchrl_ckpt.run.weight_store import Canary, Policy, WeightStore

def export(directory):
    (directory / "model.safetensors").write_bytes(b"weights")
    (directory / "tokenizer").mkdir()
    (directory / "tokenizer/vocabulary").write_text("abc")

run = Path(sys.argv[1])
weights, rollouts = WeightStore(run / "weights"), RolloutStore(run / "rollouts")
weights.clear()
rollouts.clear()
input()
weights.write(1, export, Policy(1, "id", False, Canary([[1]], [[]], "float32"), None))
rollouts.write(metadata(4), [rollout("cat", [1], [2], [-0.5])])
"""


def test_a_policy_and_a_batch_are_on_disk_before_they_have_their_names(tmp_path: Path) -> None:
    if reason := unavailable():
        pytest.skip(reason)
    run, log = tmp_path / "run", tmp_path / "log"
    argv = [sys.executable, "-c", PUBLISH, run]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, text=True) as process:
        wait_until(lambda: (run / "rollouts").is_dir())
        with recording([process.pid], log):
            process.communicate("\n", timeout=60)
    assert process.returncode == 0
    calls = fault_points(run, log)
    shown = [number for number, call in enumerate(calls) if call.name in RENAMES]
    paths = {call.path for call in calls}
    assert {"weights/.step_1.tmp/tokenizer/vocabulary", "rollouts/.step_4.tmp/batch.json"} <= paths
    inside = ("weights/.step_1.tmp", "rollouts/.step_4.tmp")
    for number in shown:
        assert not {path for path in not_durable(calls[:number]) if path.startswith(inside)}
    # The names come last; those that the files had before are of no consequence.
    assert {"weights", "rollouts"}.isdisjoint(not_durable(calls))


def test_a_change_that_is_not_synced_is_found() -> None:
    made = FaultPoint("mkdir", "checkpoints/a", 1)
    opened = FaultPoint("openat", "checkpoints/a/file", 1)
    written = FaultPoint("write", "checkpoints/a/file", 1)
    synced = [FaultPoint("fsync", path, 1) for path in ("checkpoints", "checkpoints/a")]
    assert not_durable([made, opened, written, *synced]) == {"checkpoints/a/file"}
    assert not_durable([made, opened, *synced[:1]]) == {"checkpoints/a"}
