"""Everything in a checkpoint directory is listed with its state, whatever state that is."""

from __future__ import annotations

import json
from typing import Any

import pytest
import xxhash

from tests.support.plain_checkpoint import PARTS, Save, write_part
from torchrl_ckpt.checkpoint.commit import begin_deletion, request
from torchrl_ckpt.checkpoint.inventory import list_entries
from torchrl_ckpt.checkpoint.layout import MANIFEST, Layout
from torchrl_ckpt.checkpoint.resume import choose, quarantine_after
from torchrl_ckpt.plugin_api.errors import CheckpointMismatch


def change_format(layout: Layout, step: int) -> None:
    """Make a step one of another version, whose seal is right."""
    path = layout.step(step) / MANIFEST
    content = {**json.loads(path.read_text()), "format": 1}
    del content["seal"]
    seal = xxhash.xxh3_128_hexdigest(json.dumps(content, sort_keys=True).encode())
    path.write_text(json.dumps({**content, "seal": seal}, indent=1, sort_keys=True) + "\n")


def test_every_state_is_listed_by_step(layout: Layout, save: Save) -> None:
    for step in (1, 2, 3, 4, 9):
        save(step)
    begin_deletion(layout, 1)
    (layout.step(2) / MANIFEST).write_text("{")
    change_format(layout, 3)
    quarantine_after(layout, 4)
    write_part(request(layout, 5, PARTS), "trainer")
    found = [(entry.step, entry.state, entry.parts) for entry in list_entries(layout)]
    assert [(step, state) for step, state, _ in found] == [
        (1, "deleting"),
        (2, "damaged"),
        (3, "other format"),
        (4, "committed"),
        (5, "partial"),
        (9, "quarantined"),
    ]
    assert found[3][2] == PARTS
    assert found[4][2] == ("trainer",)
    assert [entry.step for entry in list_entries(layout) if entry.newest] == [4]


def test_only_the_last_few_committed_steps_may_be_listed(layout: Layout, save: Save) -> None:
    for step in (1, 2, 3):
        save(step)
    assert [entry.step for entry in list_entries(layout, last=2)] == [2, 3]


@pytest.mark.parametrize("step", [2, "latest"])
def test_a_checkpoint_of_another_format_is_refused_and_stays(
    layout: Layout, save: Save, step: Any
) -> None:
    save(2)
    change_format(layout, 2)
    with pytest.raises(CheckpointMismatch, match=r"has checkpoint format 1, .* reads format 2"):
        choose(layout, step)
    assert layout.steps() == [2]
