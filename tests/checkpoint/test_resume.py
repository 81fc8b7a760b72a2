"""A resume takes a good checkpoint or fails; it never starts afresh silently."""

from __future__ import annotations

import json

import pytest

from tests.support.plain_checkpoint import Save
from torchrl_ckpt.checkpoint.layout import Layout
from torchrl_ckpt.checkpoint.resume import choose, quarantine_after, refuse_to_overwrite
from torchrl_ckpt.checkpoint.verify import verify
from torchrl_ckpt.plugin_api.errors import CheckpointDamaged, CheckpointNotFound, RunDirectoryInUse


def damage(layout: Layout, step: int) -> None:
    (layout.step(step) / "trainer/tensors/shard.bin").write_bytes(b"weights of x")


def test_latest_is_the_highest_step_and_not_the_youngest_file(layout: Layout, save: Save) -> None:
    for step in (10, 9, 2):
        save(step)
    assert choose(layout, "latest").step == 10


def test_latest_steps_back_over_a_bad_one_and_quarantines_it(layout: Layout, save: Save) -> None:
    for step in (1, 2, 3):
        save(step)
    damage(layout, 3)
    assert choose(layout, "latest").step == 2
    assert layout.steps() == [1, 2]
    reason = json.loads((layout.quarantine(3) / "reason.json").read_text())
    assert "shard.bin" in reason["reason"]


def test_no_good_candidate_is_an_error_and_moves_nothing(layout: Layout, save: Save) -> None:
    save(1)
    damage(layout, 1)
    with pytest.raises(CheckpointDamaged, match=r"no checkpoint in .* is good"):
        choose(layout, "latest")
    assert layout.steps() == [1]


def test_a_named_step_that_is_not_there_lists_those_that_are(layout: Layout, save: Save) -> None:
    save(2)
    save(4)
    with pytest.raises(CheckpointNotFound, match=r"no checkpoint of step 3.*steps 2, 4"):
        choose(layout, 3)


def test_a_named_step_that_is_bad_is_an_error(layout: Layout, save: Save) -> None:
    save(1)
    save(2)
    damage(layout, 2)
    with pytest.raises(CheckpointDamaged, match=r"shard\.bin has changed.*there are steps 1, 2"):
        choose(layout, 2)


def test_a_half_written_step_is_no_candidate(layout: Layout, save: Save) -> None:
    save(1)
    layout.partial(2).mkdir()
    assert choose(layout, "latest").step == 1


def test_a_step_that_lost_its_manifest_is_bad_and_not_absent(layout: Layout, save: Save) -> None:
    save(1)
    (save(2) / "manifest.json").unlink()
    assert choose(layout, "latest").step == 1
    assert layout.quarantine(2).is_dir()
    (layout.step(1) / "manifest.json").unlink()
    with pytest.raises(RunDirectoryInUse):
        refuse_to_overwrite(layout)


def test_steps_that_a_resumed_run_does_again_are_quarantined(layout: Layout, save: Save) -> None:
    for step in (1, 2, 3):
        save(step)
    quarantine_after(layout, 1)
    save(2)
    assert choose(layout, "latest").step == 2
    verify(layout.quarantine(3).rename(layout.root / "elsewhere").parent / "step_2")


def test_a_fresh_run_refuses_a_directory_with_checkpoints(layout: Layout, save: Save) -> None:
    refuse_to_overwrite(layout)
    save(6)
    with pytest.raises(RunDirectoryInUse, match=r"--ckpt\.resume-step 6"):
        refuse_to_overwrite(layout)
