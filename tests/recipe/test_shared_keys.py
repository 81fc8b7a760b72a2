"""A shared key at the root applies to the sections within its layer, and switches none on."""

from __future__ import annotations

import pytest

from tests.support.recipe_files import Recipes
from tests.support.toy_schemas import Machine
from torchrl_ckpt.config.rl_recipe import RlRecipe

RL = """
model = "toy"
trainer = {}
[orchestrator.environment]
type = "words"
size = 4
"""


def test_it_reaches_every_section_that_has_it(recipes: Recipes) -> None:
    recipes.write(top="steps = 7\nmodel = 'toy'\nspare = {}")
    machine = recipes.resolve(Machine, "@ top.toml")
    assert (machine.part.steps, machine.spare.steps) == (7, 7)
    assert (machine.part.model.type, machine.spare.model.type) == ("toy", "toy")


def test_the_sections_own_key_beats_it_within_a_file(recipes: Recipes) -> None:
    recipes.write(top="steps = 7\n[part]\nsteps = 8")
    assert recipes.resolve(Machine, "@ top.toml").part.steps == 8


def test_it_beats_what_the_file_includes_in_the_section(recipes: Recipes) -> None:
    recipes.write(part="steps = 8", top="steps = 7\npart = '@ part.toml'")
    assert recipes.resolve(Machine, "@ top.toml").part.steps == 7


def test_in_an_included_root_file_it_is_beaten_by_the_includer(recipes: Recipes) -> None:
    recipes.write(
        base="steps = 7", top="'@' = 'base.toml'\n[part]\nsteps = 8\n[spare]\nmodel='toy'"
    )
    machine = recipes.resolve(Machine, "@ top.toml")
    assert (machine.part.steps, machine.spare.steps) == (8, 7)


def test_in_a_section_file_it_is_that_sections_alone(recipes: Recipes) -> None:
    recipes.write(part="steps = 8")
    assert recipes.resolve(Machine, "--part @ part.toml --spare.model toy").spare.steps == 1


def test_as_a_flag_it_beats_everything_nested_in_files(recipes: Recipes) -> None:
    recipes.write(top="[part]\nsteps = 8", part="steps = 9")
    argv = "@ top.toml --part @ part.toml --steps 10"
    assert recipes.resolve(Machine, argv).part.steps == 10


def test_among_flags_the_nested_one_wins_in_any_order(recipes: Recipes) -> None:
    for argv in ("--part.steps 5 --steps 10", "--steps 10 --part.steps 5"):
        machine = recipes.resolve(Machine, argv)
        assert (machine.steps, machine.part.steps) == (10, 5)


def test_tables_reach_the_sections_key_by_key(recipes: Recipes) -> None:
    recipes.write(top="[ckpt]\nkeep = 3\ninterval = 1\n[part.ckpt]\ninterval = 2")
    ckpt = recipes.resolve(Machine, "@ top.toml --ckpt.keep-every 10").part.ckpt
    assert (ckpt.keep, ckpt.interval, ckpt.keep_every) == (3, 2, 10)


def test_it_does_not_switch_a_section_on(recipes: Recipes) -> None:
    recipes.write(top="model = 'toy'")
    assert recipes.resolve(Machine, "@ top.toml --steps 3").spare is None


def test_it_applies_to_a_section_that_another_layer_switches_on(recipes: Recipes) -> None:
    recipes.write(top="model = 'toy'", earlier="spare.depth = 1", section="depth = 2")
    for argv in (
        "@ earlier.toml @ top.toml",
        "@ top.toml @ earlier.toml",
        "@ top.toml --spare",
        "@ top.toml --spare @ section.toml",
        "--model toy @ earlier.toml",
    ):
        assert recipes.resolve(Machine, argv).spare.model.type == "toy"


def test_it_does_not_switch_on_again_what_was_switched_off(recipes: Recipes) -> None:
    recipes.write(base="spare = {model = 'toy'}", top="'@' = 'base.toml'\nspare = false")
    assert recipes.resolve(Machine, "@ top.toml --steps 3").spare is None


def test_a_plugins_option_alone_applies_to_the_plugins_of_the_sections(recipes: Recipes) -> None:
    recipes.write(part="model = 'toy'")
    machine = recipes.resolve(Machine, "--part @ part.toml --model.attention flash")
    assert machine.part.model.options["attention"] == "flash"
    assert machine.model is None


def test_a_job_can_be_put_together_on_the_command_line(recipes: Recipes) -> None:
    recipes.write(
        train="max_steps = 20\nmodel = 'toy'",
        orch="max_steps = 20\nmodel = 'toy'\nenvironment = {type = 'words', size = 4}",
    )
    recipe = recipes.resolve(
        RlRecipe,
        "--trainer @ train.toml --orchestrator @ orch.toml --max-steps 10 --ckpt.resume-step 5",
        output_dir="outputs/rl",
    )
    for section in (recipe.trainer, recipe.orchestrator):
        assert section.max_steps == 10
        assert section.ckpt.resume_step == 5
        assert section.output_dir == recipes.directory / "outputs/rl"
    assert recipe.inference is None


def test_a_default_of_the_command_reaches_the_sections(recipes: Recipes) -> None:
    recipes.write(rl=RL, own=f"output_dir = 'mine'\n{RL}")
    outputs = recipes.directory / "outputs"
    assert (
        recipes.resolve(RlRecipe, "@ rl.toml", output_dir="outputs").trainer.output_dir == outputs
    )
    recipe = recipes.resolve(RlRecipe, "@ own.toml", output_dir="outputs")
    assert recipe.orchestrator.output_dir == recipes.directory / "mine"


@pytest.mark.parametrize(
    "written",
    ['{key} = "@ {key}.toml"', '[{key}]\n"@" = "{key}.toml"', '{key} = {{"@" = "{key}.toml"}}'],
)
def test_it_may_be_an_include(recipes: Recipes, written: str) -> None:
    recipes.write(
        model="type = 'toy'\nattention = 'flash'",
        ckpt="interval = 5",
        top="\n".join(written.format(key=key) for key in ("model", "ckpt")),
    )
    machine = recipes.resolve(Machine, "@ top.toml --spare")
    for section in (machine, machine.part, machine.spare):
        assert section.model.options["attention"] == "flash"
    assert (machine.ckpt.interval, machine.part.ckpt.interval) == (5, 5)


def test_it_may_be_a_file_on_the_command_line(recipes: Recipes) -> None:
    recipes.write(model="type = 'toy'\nattention = 'flash'", ckpt="interval = 5")
    machine = recipes.resolve(Machine, "--model @ model.toml --ckpt @ ckpt.toml --spare")
    for section in (machine, machine.part, machine.spare):
        assert section.model.options["attention"] == "flash"
    assert (machine.ckpt.interval, machine.part.ckpt.interval) == (5, 5)


def test_included_or_written_out_it_beats_what_the_section_includes(recipes: Recipes) -> None:
    recipes.write(
        part="model = 'other'\nckpt.interval = 1",
        model="type = 'toy'",
        ckpt="interval = 5",
        before="model = '@ model.toml'\nckpt = '@ ckpt.toml'\npart = '@ part.toml'",
        after="part = '@ part.toml'\nmodel = '@ model.toml'\nckpt = '@ ckpt.toml'",
        written_out="part = '@ part.toml'\nmodel = 'toy'\nckpt.interval = 5",
    )
    for top in ("before", "after", "written_out"):
        part = recipes.resolve(Machine, f"@ {top}.toml").part
        assert (part.model.type, part.ckpt.interval) == ("toy", 5)


def test_included_or_written_out_the_sections_own_key_beats_it(recipes: Recipes) -> None:
    recipes.write(
        toy="type = 'toy'",
        flash="type = 'toy'\nattention = 'flash'",
        both_included="[part]\nmodel = '@ flash.toml'\n[model]\n'@' = 'toy.toml'",
        own_included="model = {type = 'toy', attention = 'eager'}\npart.model = '@ flash.toml'",
        shared_included="model = '@ toy.toml'\n[part.model]\nattention = 'flash'",
    )
    for top in ("both_included", "own_included", "shared_included"):
        part = recipes.resolve(Machine, f"@ {top}.toml").part
        assert part.model.options["attention"] == "flash"


def test_own_keys_beat_its_include(recipes: Recipes) -> None:
    recipes.write(ckpt="interval = 5\nkeep = 3", top="[ckpt]\n'@' = 'ckpt.toml'\ninterval = 6")
    ckpt = recipes.resolve(Machine, "@ top.toml").part.ckpt
    assert (ckpt.interval, ckpt.keep) == (6, 3)


def test_as_an_include_it_belongs_to_the_layer_of_its_file(recipes: Recipes) -> None:
    recipes.write(
        ckpt="interval = 5",
        base="ckpt = '@ ckpt.toml'",
        top="'@' = 'base.toml'\npart.ckpt.interval = 6",
        later="part.ckpt.interval = 7",
        part="ckpt.interval = 8",
    )
    for argv, interval in (
        ("@ base.toml", 5),
        ("@ top.toml", 6),
        ("@ base.toml @ later.toml", 7),
        ("@ later.toml @ base.toml", 5),
        ("@ later.toml --ckpt @ ckpt.toml", 5),
        ("--ckpt @ ckpt.toml --part @ part.toml", 8),
        ("--part @ part.toml --ckpt @ ckpt.toml", 5),
        ("--ckpt @ ckpt.toml --part.ckpt.interval 9", 9),
        ("--part.ckpt.interval 9 --ckpt @ ckpt.toml", 9),
    ):
        assert recipes.resolve(Machine, argv).part.ckpt.interval == interval


def test_its_place_is_in_the_included_file(recipes: Recipes) -> None:
    recipes.write(ckpt="interval = 0", top="ckpt = '@ ckpt.toml'")
    assert recipes.error(Machine, "@ top.toml") == (
        "ckpt.toml:1, via top.toml: `ckpt.interval` is 0;"
        " expected a whole number, at least 1, or off"
    )
