"""A validated recipe is written as JSON and read back without any plugin."""

from __future__ import annotations

import json
import random

import pytest

from tests.support.recipe_files import Recipes
from tests.support.toy_schemas import Machine, Values
from torchrl_ckpt.config.rl_recipe import RlRecipe
from torchrl_ckpt.config.settings import from_json, to_json
from torchrl_ckpt.config.sft_recipe import SftRecipe
from torchrl_ckpt.plugin_api.errors import RecipeError

RL = (
    "--model toy --model.files a --output-dir x --ckpt.resume-step latest --trainer.warm-start b"
    " --orchestrator.environment words --orchestrator.environment.size 4 --inference"
)
SFT = "--model toy --output-dir x --data.files a b --no-optim.max-norm"


@pytest.mark.parametrize(
    ("schema", "argv"), [(RlRecipe, RL), (SftRecipe, SFT), (Machine, ""), (Values, "--pair 1 2")]
)
def test_it_is_read_back_the_same(recipes: Recipes, schema: type, argv: str) -> None:
    recipe = recipes.resolve(schema, argv)
    assert from_json(schema, json.loads(json.dumps(to_json(recipe)))) == recipe


def test_numbers_are_read_back_to_the_last_bit(recipes: Recipes) -> None:
    draw = random.Random(0)
    for _ in range(100):
        number = draw.uniform(-1, 1) * 10.0 ** draw.randint(-300, 300)
        recipes.write(top=f"number = {number!r}")
        values = recipes.resolve(Values, "@ top.toml")
        assert from_json(Values, to_json(values)).number == number


def test_data_that_does_not_fit_the_schema_is_refused() -> None:
    with pytest.raises(RecipeError, match="does not fit this version"):
        from_json(Values, {"hwole": 1})
