"""Defaults, root files, section files, flags: each layer beats those before, and tables merge."""

from __future__ import annotations

from pathlib import Path

from tests.support.recipe_files import Recipes
from tests.support.toy_schemas import Machine, Values
from torchrl_ckpt.recipe.compose import compose


def test_a_later_layer_beats_an_earlier_one(recipes: Recipes) -> None:
    recipes.write(one="part.steps = 1", two="part.steps = 2", section="steps = 3")
    assert recipes.resolve(Machine).part.steps == 1
    assert recipes.resolve(Machine, "@ two.toml @ one.toml").part.steps == 1
    assert recipes.resolve(Machine, "@ one.toml @ two.toml").part.steps == 2
    assert recipes.resolve(Machine, "--part @ section.toml @ two.toml").part.steps == 3
    assert recipes.resolve(Machine, "--part.steps 4 --part @ section.toml").part.steps == 4
    assert recipes.resolve(Machine, "--part.steps 4 --part.steps 5").part.steps == 5


def test_given_files_are_the_first_root_files(recipes: Recipes) -> None:
    recipes.write(one="steps = 1", two="steps = 2")
    tree = compose(["@", "two.toml"], Machine, files=[Path("one.toml")])
    assert str(tree.node(("part", "steps")).origin) == "two.toml:1"  # type: ignore[union-attr]


def test_defaults_of_the_command_beat_only_the_schema(recipes: Recipes) -> None:
    recipes.write(top="part.steps = 3")
    assert recipes.resolve(Machine, steps=2).part.steps == 2
    assert recipes.resolve(Machine, "@ top.toml", steps=2).part.steps == 3


def test_tables_merge_and_arrays_replace(recipes: Recipes) -> None:
    recipes.write(
        under="[limits]\nspeed = 5\nnames = ['a', 'b']\n[table]\na = 1\nb = 1",
        over="[limits]\nnames = ['c']\n[table]\nb = 2",
    )
    values = recipes.resolve(Values, "@ under.toml @ over.toml")
    assert (values.limits.speed, values.limits.names) == (5, ["c"])
    assert values.table == {"a": 1, "b": 2}


def test_a_table_merges_over_the_default_of_its_key(recipes: Recipes) -> None:
    recipes.write(top="[part.limits]\nflag = true")
    assert recipes.resolve(Machine, "@ top.toml").part.limits.speed == 2.0


def test_another_type_replaces_the_table(recipes: Recipes) -> None:
    recipes.write(
        toy="[model]\ntype = 'toy'\nattention = 'flash'",
        same="[model]\ntype = 'toy'\ndropout = 0.0",
        other="model = 'other'",
    )
    same = recipes.resolve(Values, "@ toy.toml @ same.toml").model
    assert (same.options["attention"], same.options["dropout"]) == ("flash", 0.0)
    assert recipes.resolve(Values, "@ toy.toml @ other.toml").model.options == {}
    assert recipes.resolve(Values, "@ toy.toml --model other").model.options == {}
    assert recipes.resolve(Values, "@ toy.toml --model.type other").model.options == {}


def test_a_replaced_table_does_not_come_back(recipes: Recipes) -> None:
    recipes.write(
        toy="model = {type = 'toy', attention = 'flash'}",
        other="model = 'other'",
        again="model = 'toy'",
    )
    model = recipes.resolve(Values, "@ toy.toml @ other.toml @ again.toml").model
    assert model.options["attention"] == "sdpa"


def test_another_type_than_the_default_one_replaces_as_well(recipes: Recipes) -> None:
    recipes.write(top="[part.loss]\nclip = 0.2")
    assert recipes.resolve(Machine, "@ top.toml --part.loss custom").part.loss.options == {}


def test_flags_of_the_new_type_survive_the_change_of_type(recipes: Recipes) -> None:
    recipes.write(top="model = 'other'")
    for argv in (
        "--model.attention flash --model toy",
        "--model toy --model.attention flash",
        "--model other --model.attention flash --model toy",
    ):
        model = recipes.resolve(Values, f"@ top.toml {argv}").model
        assert (model.type, model.options["attention"]) == ("toy", "flash")
