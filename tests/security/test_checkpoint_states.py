"""States in a checkpoint by somebody else are checked before anything takes them over."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.support.rollouts import ATTEMPT_ID, metadata, rollout
from torchrl_ckpt.checkpoint.layout import STATE, Layout
from torchrl_ckpt.checkpoint.rollout_part import ORCHESTRATOR, restore_policies
from torchrl_ckpt.orchestrator.state import OrchestratorState
from torchrl_ckpt.plugin_api.errors import CheckpointDamaged
from torchrl_ckpt.run.rollout_store import TENSORS, RolloutStore
from torchrl_ckpt.run.weight_store import Canary, Policy, WeightStore
from torchrl_ckpt.shuffled_stream import ShuffledStream

GOOD: dict[str, Any] = {
    "step": 2,
    "async_level": 1,
    "generated": {"step": 3, "problems": 1, "samples": 1, "tokens": 1},
    "problems": {"position": 5, "size": 9},
    "carried": [3],
}


@pytest.mark.parametrize(
    "odd",
    [
        "",
        "[]",
        "[" * 5000,
        *(json.dumps({**GOOD, name: value}) for name in GOOD for value in (None, "x", [[]], -1)),
        json.dumps({**GOOD, "generated": {"step": 3, "more": 1}}),
        json.dumps({**GOOD, "problems": {}}),
        json.dumps({**GOOD, "carried": ["../../elsewhere"]}),
    ],
)
def test_an_odd_state_of_the_orchestrator_is_damage(odd: str, tmp_path: Path) -> None:
    layout = Layout(tmp_path)
    directory = layout.step(2) / ORCHESTRATOR
    directory.mkdir(parents=True)
    state = OrchestratorState(ShuffledStream(9, 0), async_level=1)
    (directory / STATE).write_text(json.dumps(GOOD))
    assert state.restore(layout, 2) == [directory / "rollouts/step_3"]
    (directory / STATE).write_text(odd)
    with pytest.raises(CheckpointDamaged):
        state.restore(layout, 2)


OUTSIDE = Path(__file__)


def test_a_carried_batch_has_no_link(tmp_path: Path) -> None:
    carried = RolloutStore(tmp_path / "carried")
    carried.write(metadata(4), [rollout("apple", [1], [2], [-0.5])])
    (carried.path(4) / TENSORS).unlink()
    (carried.path(4) / TENSORS).symlink_to(OUTSIDE)
    with pytest.raises(CheckpointDamaged, match=TENSORS):
        RolloutStore(tmp_path / "rollouts").restore(carried.path(4), ATTEMPT_ID)


@pytest.mark.parametrize("link", ["rollouts", "rollouts/step_3"])
def test_a_carried_batch_is_not_taken_from_elsewhere(link: str, tmp_path: Path) -> None:
    layout = Layout(tmp_path / "checkpoints")
    directory = layout.step(2) / ORCHESTRATOR
    (directory / link).parent.mkdir(parents=True)
    (directory / STATE).write_text(json.dumps(GOOD))
    (tmp_path / "elsewhere/step_3").mkdir(parents=True)
    (directory / link).symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    with pytest.raises(CheckpointDamaged, match="leads out"):
        OrchestratorState(ShuffledStream(9, 0), async_level=1).restore(layout, 2)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("more", OUTSIDE),
        ("", OUTSIDE.parent),
        ("policy.json", None),
        ("policy.json", "{"),
        ("policy.json", "[]"),
    ],
)
def test_an_odd_carried_policy_is_damage(
    name: str, content: str | Path | None, tmp_path: Path
) -> None:
    part, weights = tmp_path / ORCHESTRATOR, WeightStore(tmp_path / "weights")
    canary = Canary([[1, 2]], [[-0.5]], "float32")
    WeightStore(part / "weights").write(2, lambda _: None, Policy(2, "0" * 32, False, canary, None))
    (part / STATE).write_text('{"policies": [2]}')
    restore_policies(part, weights, ATTEMPT_ID)
    assert weights.read(2, ATTEMPT_ID) is not None
    path = part / "weights/step_2" / name
    if name == "":
        path.rename(tmp_path / "elsewhere")
    path.unlink(missing_ok=True)
    if isinstance(content, Path):
        path.symlink_to(content)
    elif content is not None:
        path.write_text(content)
    with pytest.raises(CheckpointDamaged, match="step_2"):
        restore_policies(part, weights, ATTEMPT_ID)
