"""Changed options are noted on resume, and refused where an exact resume is impossible."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from torchrl_ckpt.checkpoint.manifest import Manifest
from torchrl_ckpt.launcher.recipe_diff import notes_on_resume
from torchrl_ckpt.plugin_api.errors import CheckpointDamaged, CheckpointMismatch

RECIPE: dict[str, Any] = {
    "max_steps": 20,
    "model": {"type": "transformers"},
    "ckpt": {"backend": {"type": "dcp"}},
    "seed": 0,
    "ranks": 1,
    "output_dir": "outputs/a",
    "optim": {"lr": 0.1},
    "scheduler": {"name": "linear", "decay_steps": 40},
    "data": {"files": ["a.jsonl"], "batch_size": 8},
}


def manifest(command: str, recipe: dict[str, Any]) -> Manifest:
    return Manifest(20, ("trainer",), (), {"command": command, "recipe": recipe})


def notes(**changes: Any) -> list[str]:
    recipe = copy.deepcopy(RECIPE)
    for key, value in changes.items():
        section, _, name = key.rpartition("__")
        (recipe[section] if section else recipe)[name] = value
    return notes_on_resume(manifest("sft", RECIPE), "sft", recipe)


def test_a_resume_with_the_same_recipe_needs_no_note() -> None:
    assert notes(max_steps=40, output_dir="outputs/b") == []


def test_a_seed_is_refused_by_name() -> None:
    with pytest.raises(CheckpointMismatch, match="`seed` was 0 and is 1 now; the data would"):
        notes(seed=1)


def test_a_new_learning_rate_is_noted() -> None:
    assert notes(optim__lr=0.2) == [
        "`optim.lr` was 0.1 and is 0.2 now: it applies from the next step on"
    ]


def test_other_data_and_another_world_size_are_noted_with_their_consequence() -> None:
    (data,) = notes(data__files=["b.jsonl"])
    assert "`data.files` was ['a.jsonl'] and is ['b.jsonl'] now" in data
    assert "the data from here on differ" in data
    (ranks,) = notes(ranks=2)
    assert "the same to the bit, but sums are computed in another order" in ranks


def test_a_schedule_that_depends_on_max_steps_is_explained() -> None:
    before = copy.deepcopy(RECIPE)
    before["scheduler"]["decay_steps"] = None
    (note,) = notes_on_resume(manifest("sft", before), "sft", {**before, "max_steps": 40})
    assert "another schedule" in note
    assert "scheduler.decay_steps" in note


def test_a_backend_that_cannot_read_the_files_is_refused() -> None:
    with pytest.raises(CheckpointMismatch, match=r"`ckpt\.backend` was 'dcp'.*is 'other' now"):
        notes(ckpt__backend={"type": "other"})


def test_the_shared_keys_of_the_root_do_not_count_beside_the_sections() -> None:
    job = {"seed": None, "trainer": RECIPE, "orchestrator": {"seed": 0}}
    saved = manifest("rl", job)
    assert notes_on_resume(saved, "rl", {**job, "seed": 0}) == []
    with pytest.raises(CheckpointMismatch, match=r"`orchestrator\.seed` was 0 and is 3 now"):
        notes_on_resume(saved, "rl", {**job, "orchestrator": {"seed": 3}})


def test_the_other_kind_of_training_is_refused() -> None:
    job = {"trainer": RECIPE, "orchestrator": {"seed": 0}}
    with pytest.raises(CheckpointMismatch, match="one of reinforcement learning"):
        notes_on_resume(manifest("rl", job), "sft", RECIPE)


def test_a_component_started_alone_is_compared_with_its_own_section() -> None:
    saved = manifest("rl", {"trainer": RECIPE, "orchestrator": {"seed": 0}})
    faster = {**RECIPE, "optim": {"lr": 0.2}}
    (note,) = notes_on_resume(saved, "trainer", faster)
    assert "`trainer.optim.lr` was 0.1 and is 0.2 now" in note
    with pytest.raises(CheckpointMismatch, match=r"`orchestrator\.seed` was 0 and is 3 now"):
        notes_on_resume(saved, "orchestrator", {"seed": 3})


def test_another_model_of_an_rl_run_is_noted_but_not_where_a_warm_start_has_named_it() -> None:
    model = {"type": "transformers", "config": {"num_hidden_layers": 2}}
    saved = manifest("rl", {"trainer": {**RECIPE, "model": model}, "orchestrator": {"seed": 0}})
    deeper = {**RECIPE, "model": {"type": "transformers", "config": {"num_hidden_layers": 3}}}
    (note,) = notes_on_resume(saved, "trainer", deeper)
    assert "`trainer.model.config.num_hidden_layers` was 2 and is 3 now: the tensors must" in note
    warm = {**RECIPE, "model": {"type": "transformers", "name": "outputs/sft/weights/step_40"}}
    assert notes_on_resume(saved, "trainer", warm) == []


@pytest.mark.parametrize(
    "odd",
    [
        {"ckpt": {"backend": {}}},
        {"ckpt": {"backend": 7}},
        {"ckpt": {"backend": {"type": []}}},
        {"ckpt": 7},
        {"model": None},
    ],
)
def test_an_odd_recipe_in_a_manifest_is_damage(odd: dict[str, Any]) -> None:
    with pytest.raises(CheckpointDamaged, match=r"manifest\.json is damaged"):
        notes_on_resume(manifest("sft", {**RECIPE, **odd}), "sft", RECIPE)


@pytest.mark.parametrize("command", ["sft", "rl", "orchestrator", "unheard-of", ""])
@pytest.mark.parametrize("recipe", [{}, {"trainer": {}, "orchestrator": {}}, {"trainer": RECIPE}])
def test_a_recipe_that_lacks_what_its_command_needs_is_refused(
    command: str, recipe: dict[str, Any]
) -> None:
    with pytest.raises((CheckpointDamaged, CheckpointMismatch)):
        notes_on_resume(manifest(command, recipe), "sft", RECIPE)
    with pytest.raises((CheckpointDamaged, CheckpointMismatch)):
        notes_on_resume(manifest(command, recipe), "trainer", RECIPE)


def test_options_that_no_longer_exist_or_did_not_exist_are_noted() -> None:
    before = copy.deepcopy(RECIPE)
    before.update(attempt=3, optim={"lr": 0.1, "old": True}, scheduler=None)
    del before["max_steps"]
    found = notes_on_resume(manifest("sft", before), "sft", RECIPE)
    assert "`attempt` was 3 and is unset now: it has no effect any more" in found
    assert "`optim.old` was True and is unset now: it has no effect any more" in found
    assert any(note.startswith("`scheduler` was unset and is {") for note in found)


def test_a_long_value_is_shortened() -> None:
    (note,) = notes(data__files=["x" * 100_000])
    assert len(note) < 1000
