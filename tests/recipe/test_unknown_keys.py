"""All unknown keys are reported at once, each with its place and the nearest valid key."""

from __future__ import annotations

import pytest

from tests.support.recipe_files import Recipes
from tests.support.toy_schemas import Machine, Values
from torchrl_ckpt.config.rl_recipe import RlRecipe


def test_they_are_reported_at_once_from_files_flags_and_plugin_tables(recipes: Recipes) -> None:
    recipes.write(
        top="steps = 1\n\n[part.limits]\nsped = 1\n[model]\ntype = 'toy'\natention = 'x'",
        section="\nlimit.speed = 3",
        root="'@' = 'top.toml'",
    )
    argv = "@ root.toml --part @ section.toml --keep 3 --part.losss.x 1 --nonsense"
    assert recipes.error(Machine, argv) == (
        "6 things are wrong with the recipe:\n"
        "  top.toml:4, via root.toml: unknown key `part.limits.sped`;"
        " did you mean `part.limits.speed`?\n"
        "  section.toml:2: unknown key `part.limit`; did you mean `part.limits`?\n"
        "  --part.losss.x 1: unknown key `part.losss`; did you mean `--part.loss`?\n"
        "  --keep 3: unknown key `keep`; did you mean `--ckpt.keep`?\n"
        "  --nonsense: unknown key `nonsense`\n"
        "  top.toml:7, via root.toml: unknown key `model.atention`, which plugin `toy` does not"
        " have; did you mean `model.attention`?"
    )


@pytest.mark.parametrize(
    ("flag", "guess"),
    [
        ("--ckpt.kep 3", "--ckpt.keep"),
        ("--resume-step 3", "--ckpt.resume-step"),
        ("--trainer.resume-step 3", "--trainer.ckpt.resume-step"),
        ("--lr 1", "--trainer.optim.lr"),
        ("--trianer @ train.toml", "--trainer"),
        ("--max-step 1", "--max-steps"),
        ("--no-chkpt", "--no-ckpt"),
        ("--no-orchestrator.evaluate", "--no-orchestrator.evaluation"),
    ],
)
def test_the_nearest_key_may_be_a_misspelt_or_a_misplaced_one(
    recipes: Recipes, flag: str, guess: str
) -> None:
    argv = (
        f"{flag} --model toy --output-dir x --orchestrator.environment words"
        " --orchestrator.environment.size 4"
    )
    message = recipes.error(RlRecipe, argv)
    assert message.startswith(f"{flag}: unknown key ")
    assert message.endswith(f"; did you mean `{guess}`?")


def test_a_shared_key_is_reported_once(recipes: Recipes) -> None:
    recipes.write(top="model = {type = 'toy', x = 1}\nspare = {}")
    assert recipes.error(Machine, "@ top.toml") == (
        "top.toml:1: unknown key `model.x`, which plugin `toy` does not have"
    )


def test_a_section_that_is_off_is_checked_as_well(recipes: Recipes) -> None:
    assert recipes.error(Machine, "--ckpt.kep 3 --no-ckpt").startswith("--ckpt.kep 3: unknown key")


def test_a_plugin_without_options_has_none(recipes: Recipes) -> None:
    assert recipes.error(Values, "--model other --model.zzz 1") == (
        "--model.zzz 1: unknown key `model.zzz`, which plugin `other` does not have"
    )


def test_a_key_below_a_value_is_reported(recipes: Recipes) -> None:
    assert recipes.error(Values, "--whole.x 1") == (
        "--whole.x 1: `whole` is a table; expected a whole number"
    )


def test_keys_in_files_have_underscores(recipes: Recipes) -> None:
    recipes.write(top="limits.max-height = 3")
    assert recipes.error(Values, "@ top.toml") == (
        "top.toml:1: unknown key `limits.max-height`; did you mean `limits.max_height`?"
    )
