"""States in a checkpoint by somebody else are checked before anything takes them over."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from torchrl_ckpt.checkpoint.layout import STATE, Layout
from torchrl_ckpt.checkpoint.rollout_part import ORCHESTRATOR
from torchrl_ckpt.orchestrator.state import OrchestratorState
from torchrl_ckpt.plugin_api.errors import CheckpointDamaged
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
