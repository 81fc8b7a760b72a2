"""What a resumed run does otherwise is said, and refused where it cannot work."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from torchrl_ckpt.checkpoint.manifest import Manifest
from torchrl_ckpt.launcher.recipe_diff import notes_on_resume
from torchrl_ckpt.plugin_api.errors import CheckpointMismatch

RECIPE: dict[str, Any] = {
    "max_steps": 20,
    "ckpt": {"backend": {"type": "dcp"}},
    "seed": 0,
    "ranks": 1,
    "output_dir": "outputs/a",
    "optim": {"lr": 0.1},
    "scheduler": {"name": "linear", "decay_steps": 40},
    "data": {"files": ["a.jsonl"], "batch_size": 8},
}


def notes(**changes: Any) -> list[str]:
    recipe = copy.deepcopy(RECIPE)
    for key, value in changes.items():
        section, _, name = key.rpartition("__")
        (recipe[section] if section else recipe)[name] = value
    return notes_on_resume(Manifest(20, ("trainer",), (), {"recipe": RECIPE}), recipe)


def test_going_on_as_before_needs_no_word() -> None:
    assert notes(max_steps=40, output_dir="outputs/b") == []


def test_a_seed_is_refused_by_name() -> None:
    with pytest.raises(CheckpointMismatch, match="`seed` was 0 and is 1 now; the data would"):
        notes(seed=1)


def test_a_new_learning_rate_is_said_to_count() -> None:
    assert notes(optim__lr=0.2) == [
        "`optim.lr` was 0.1 and is 0.2 now: it counts from the next step on"
    ]


def test_other_data_and_another_world_size_say_what_that_means() -> None:
    (data,) = notes(data__files=["b.jsonl"])
    assert "`data.files` was ['a.jsonl'] and is ['b.jsonl'] now" in data
    assert "other data" in data
    (ranks,) = notes(ranks=2)
    assert "the same to the bit, but sums are done in another order" in ranks


def test_a_schedule_that_hangs_on_max_steps_is_explained() -> None:
    before = copy.deepcopy(RECIPE)
    before["scheduler"]["decay_steps"] = None
    manifest = Manifest(20, ("trainer",), (), {"recipe": before})
    (note,) = notes_on_resume(manifest, {**before, "max_steps": 40})
    assert "another schedule" in note
    assert "scheduler.decay_steps" in note


def test_another_backend_cannot_read_what_the_first_one_wrote() -> None:
    with pytest.raises(CheckpointMismatch, match=r"`ckpt\.backend` was 'dcp'.*is 'other' now"):
        notes(ckpt__backend={"type": "other"})


def test_the_roots_keys_of_a_job_do_not_count_beside_its_sections() -> None:
    job = {"seed": None, "trainer": RECIPE, "orchestrator": {"seed": 0}}
    manifest = Manifest(20, ("trainer", "orchestrator"), (), {"recipe": job})
    assert notes_on_resume(manifest, {**job, "seed": 0}) == []
    with pytest.raises(CheckpointMismatch, match=r"`orchestrator\.seed` was 0 and is 3 now"):
        notes_on_resume(manifest, {**job, "orchestrator": {"seed": 3}})
    with pytest.raises(CheckpointMismatch, match="one of reinforcement learning"):
        notes_on_resume(manifest, RECIPE)
