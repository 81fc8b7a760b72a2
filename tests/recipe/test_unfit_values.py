"""A value that does not fit is reported with key, value, place, and the expected type."""

from __future__ import annotations

import pytest

from tests.support.recipe_files import Recipes
from tests.support.toy_schemas import Values
from torchrl_ckpt.config.rl_recipe import RlRecipe
from torchrl_ckpt.config.sft_recipe import SftRecipe

STEP = "a whole number, at least 1, or `latest`, or off"
HEIGHT = "a whole number, at least 1, or off"
PLUGIN = "the name of a plugin or a table with its `type`"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("whole = 'x'", '`whole` is "x"; expected a whole number'),
        ("whole = '4'", '`whole` is "4"; expected a whole number'),
        ("whole = 4.0", "`whole` is 4.0; expected a whole number"),
        ("whole = true", "`whole` is true; expected a whole number"),
        ("number = '1'", '`number` is "1"; expected a number'),
        ("number = nan", "`number` is nan; expected finite numbers"),
        ("text = 1", "`text` is 1; expected text"),
        ("yes = 1", "`yes` is 1; expected true or false"),
        ("mode = 'fats'", '`mode` is "fats"; expected `slow` or `fast`'),
        ("step = 0", f"`step` is 0; expected {STEP}"),
        ("step = 'last'", f'`step` is "last"; expected {STEP}'),
        ("limits.speed = 0", "`limits.speed` is 0; expected a number, above 0"),
        ("limits.max_height = 0", f"`limits.max_height` is 0; expected {HEIGHT}"),
        ("pair = [1]", "`pair` is [1]; expected a list of 2 numbers (at 1: Field required)"),
        ("words = [1, 'a']", '`words` is [1, "a"]; expected a list of texts'),
        ("words = 'a'", '`words` is "a"; expected a list of texts'),
        ("path = 3", "`path` is 3; expected a path or off"),
        ("table = {a = 'x'}", '`table.a` is "x"; expected a whole number'),
        ("limits = 3", "`limits` is 3; expected a table"),
        ("extra = 3", "`extra` is 3; expected a table or off"),
        ("whole = [1]", "`whole` is [1]; expected a whole number"),
        ("whole = {a = 1}", "`whole` is a table; expected a whole number"),
        ("model = 3", f"`model` is 3; expected {PLUGIN}, or off"),
        ("model = true", f"`model` is true; expected {PLUGIN}, or off"),
        ("model = {type = 3}", "`model.type` is 3; expected text"),
    ],
)  # fmt: skip
def test_it_is_reported_in_plain_words(recipes: Recipes, text: str, message: str) -> None:
    recipes.write(top=f"\n{text}")
    assert recipes.error(Values, "@ top.toml") == f"top.toml:2: {message}"


def test_all_are_reported_at_once(recipes: Recipes) -> None:
    recipes.write(top="whole = 'x'\nmodel = {type = 'toy', dropout = -1}\nhwole = 1")
    assert recipes.error(Values, "@ top.toml --limits.speed fast") == (
        "4 things are wrong with the recipe:\n"
        "  top.toml:3: unknown key `hwole`; did you mean `whole`?\n"
        "  top.toml:2: `model.dropout` is -1; expected a number, at least 0, or off\n"
        '  top.toml:1: `whole` is "x"; expected a whole number\n'
        '  --limits.speed fast: `limits.speed` is "fast"; expected a number, above 0'
    )


def test_a_shared_key_is_reported_once(recipes: Recipes) -> None:
    recipes.write(
        top="max_steps = 0\nmodel = 'toy'\n[orchestrator.environment]\ntype = 'words'\nsize = 4"
    )
    assert recipes.error(RlRecipe, "@ top.toml", output_dir="x") == (
        "top.toml:1: `max_steps` is 0; expected a whole number, at least 1, or off"
    )


def test_a_missing_key_says_how_to_give_it(recipes: Recipes) -> None:
    recipes.write(top="model = 'toy'\ntrainer.max_steps = 3")
    assert recipes.error(RlRecipe, "@ top.toml") == (
        "3 things are wrong with the recipe:\n"
        "  `trainer.output_dir` is missing: write `output_dir = ...` in a recipe"
        " or give `--output-dir ...` (a path)\n"
        "  `orchestrator.output_dir` is missing: write `output_dir = ...` in a recipe"
        " or give `--output-dir ...` (a path)\n"
        "  `orchestrator.environment` is missing: write `orchestrator.environment = ...`"
        f" in a recipe or give `--orchestrator.environment ...` ({PLUGIN})"
    )


def test_a_check_of_the_schema_is_reported_with_the_section_and_its_place(
    recipes: Recipes,
) -> None:
    recipes.write(top="model = 'toy'\n[data]\nbatch_size = 4", bare="model = 'toy'")
    reason = "`data`: give either `files` or `environment`, and not both"
    assert recipes.error(SftRecipe, "@ top.toml", output_dir="x") == f"top.toml:2: {reason}"
    assert recipes.error(SftRecipe, "@ bare.toml", output_dir="x") == reason
