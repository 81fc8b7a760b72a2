"""A plugin's table is validated by its `Config` and completed with its defaults."""

from __future__ import annotations

import json

import pytest

from tests.support.recipe_files import Recipes
from tests.support.toy_schemas import Machine, Values
from torchrl_ckpt.config.inference import InferenceConfig
from torchrl_ckpt.config.rl_recipe import RlRecipe
from torchrl_ckpt.config.settings import named_plugins, to_json
from torchrl_ckpt.plugin_api.errors import PluginNotFound


def test_defaults_are_filled_in(recipes: Recipes) -> None:
    recipes.write(top="model = {type = 'toy', attention = 'flash'}")
    assert recipes.resolve(Values, "@ top.toml").model.options == {
        "name": None,
        "attention": "flash",
        "files": [],
        "config": {},
        "dropout": 0.5,
        "memory": 1,
    }


def test_the_config_may_be_a_dataclass(recipes: Recipes) -> None:
    environment = recipes.resolve(Values, "--environment words --environment.size 4").environment
    assert environment.options == {"size": 4, "words": [], "shuffle": True}


def test_flags_are_read_as_the_types_of_the_plugins_options(recipes: Recipes) -> None:
    argv = (
        "--environment words --environment.size 4 --environment.words 1 two"
        " --no-environment.shuffle --model toy --model.attention 2"
        " --model.files one --model.memory 8GB"
    )
    values = recipes.resolve(Values, argv)
    assert values.environment.options == {"size": 4, "words": ["1", "two"], "shuffle": False}
    assert values.model.options["attention"] == "2"
    assert values.model.options["files"] == [str(recipes.directory / "one")]
    assert values.model.options["memory"] == 8


def test_a_bare_flag_is_true(recipes: Recipes) -> None:
    argv = "--environment words --environment.size 4 --environment.shuffle"
    assert recipes.resolve(Values, argv).environment.options["shuffle"] is True


def test_free_tables_among_the_options_merge(recipes: Recipes) -> None:
    recipes.write(top="model = {type = 'toy', config = {a = 1, b = {c = 2}}}")
    for argv in ("--model.config.b.d x", "--model.config {b={d='x'}}"):
        config = recipes.resolve(Values, f"@ top.toml {argv}").model.options["config"]
        assert config == {"a": 1, "b": {"c": 2, "d": "x"}}


def test_an_open_config_gets_options_that_it_does_not_declare(recipes: Recipes) -> None:
    argv = (
        "--model toy --output-dir x --orchestrator.environment words"
        " --orchestrator.environment.size 4 --inference.engine.max-num-seqs 8"
    )
    engine = recipes.resolve(RlRecipe, argv).inference.engine
    assert engine.options["max_num_seqs"] == 8


def test_options_have_their_alias_as_name_and_defaults_may_depend_on_other_options(
    recipes: Recipes,
) -> None:
    argv = "--model toy --output-dir x --engine.max-length 4 --engine.dtype float32"
    assert recipes.resolve(InferenceConfig, argv).engine.options == {
        "dtype": "float32",
        "max_length": 4,
        "cache_dtype": "float32",
    }


def test_values_that_do_not_fit_are_reported_with_their_keys_and_places(recipes: Recipes) -> None:
    recipes.write(top="environment = 'words'\n[model]\ntype = 'toy'\nattention = 'magic'")
    assert recipes.error(Values, "@ top.toml --model.dropout=-1") == (
        "3 things are wrong with the recipe:\n"
        "  top.toml:4: `model.attention`: there is no magic\n"
        "  --model.dropout=-1: `model.dropout` is -1; expected a number, at least 0, or off\n"
        "  `environment.size` is missing: write `environment.size = ...` in a recipe"
        " or give `--environment.size ...` (a whole number)"
    )


def test_options_without_the_plugins_name_are_an_error(recipes: Recipes) -> None:
    assert recipes.error(Values, "--model.attention x") == (
        "`model.type` is missing: write `model.type = ...` in a recipe"
        " or give `--model.type ...` (text)"
    )


def test_a_missing_plugin_is_reported_with_the_place_that_names_it(recipes: Recipes) -> None:
    recipes.write(top="\npart.loss = 'gone'")
    with pytest.raises(PluginNotFound) as caught:
        recipes.resolve(Machine, "@ top.toml")
    assert str(caught.value) == "`part.loss.type` (top.toml:2): no plugin `gone` among the losses"


def test_every_plugin_that_a_recipe_names_is_listed(recipes: Recipes) -> None:
    machine = recipes.resolve(Machine, "--part.model toy --ckpt")
    assert named_plugins(machine) == [
        ("checkpoint_backends", "dcp"),
        ("models", "toy"),
        ("checkpoint_backends", "dcp"),
        ("losses", "grpo"),
    ]


def test_resolved_options_are_plain_json(recipes: Recipes) -> None:
    values = recipes.resolve(Values, "--model toy --model.files a b --path c")
    assert json.loads(json.dumps(to_json(values), allow_nan=False)) == to_json(values)
