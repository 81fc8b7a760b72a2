"""Files and flags switch sections and values on and off; the last one counts."""

from __future__ import annotations

import pytest

from tests.support.recipe_files import Recipes
from tests.support.toy_schemas import Machine, Values
from torchrl_ckpt.config.orchestrator import OrchestratorConfig


def test_a_section_is_off_until_something_switches_it_on(recipes: Recipes) -> None:
    recipes.write(on="ckpt = true", table="[ckpt]", key="ckpt.keep = 3", off="ckpt = false")
    assert recipes.resolve(Machine).ckpt is None
    assert recipes.resolve(Machine, "@ off.toml").ckpt is None
    for argv in (
        "@ on.toml",
        "@ table.toml",
        "@ key.toml",
        "--ckpt",
        "--ckpt true",
        "--ckpt.keep 3",
    ):
        assert recipes.resolve(Machine, argv).ckpt.timeout == 3600


@pytest.mark.parametrize("off", ["--no-ckpt", "--ckpt false", "--ckpt=false", "@ off.toml"])
def test_off_beats_an_earlier_on(recipes: Recipes, off: str) -> None:
    recipes.write(top="ckpt.keep = 3", off="ckpt = false")
    machine = recipes.resolve(Machine, f"@ top.toml {off}")
    assert machine.ckpt is None
    assert machine.part.ckpt is None


def test_switching_on_again_resets_nothing(recipes: Recipes) -> None:
    recipes.write(top="ckpt.keep = 3", off="ckpt = false")
    assert recipes.resolve(Machine, "@ top.toml --ckpt").ckpt.keep == 3
    assert recipes.resolve(Machine, "@ top.toml @ off.toml --ckpt").part.ckpt.keep == 3
    assert recipes.resolve(Machine, "--no-ckpt --ckpt.keep-every 4 @ top.toml").ckpt.keep == 3


def test_among_flags_the_last_one_counts(recipes: Recipes) -> None:
    assert recipes.resolve(Machine, "--ckpt --no-ckpt").ckpt is None
    assert recipes.resolve(Machine, "--ckpt.keep 3 --no-ckpt").ckpt is None
    assert recipes.resolve(Machine, "--no-ckpt --ckpt").ckpt is not None


def test_one_section_can_differ_from_the_root(recipes: Recipes) -> None:
    machine = recipes.resolve(Machine, "--ckpt.keep 3 --no-part.ckpt")
    assert machine.ckpt.keep == 3
    assert machine.part.ckpt is None


def test_a_section_that_is_on_by_default_can_be_switched_off(recipes: Recipes) -> None:
    argv = "--model toy --environment words --environment.size 4 --output-dir x"
    assert recipes.resolve(OrchestratorConfig, argv).evaluation is not None
    assert recipes.resolve(OrchestratorConfig, f"{argv} --no-evaluation").evaluation is None


def test_a_plugin_can_be_switched_off(recipes: Recipes) -> None:
    recipes.write(top="model = 'toy'", off="model = false")
    for off in ("--no-model", "--model false", "@ off.toml"):
        assert recipes.resolve(Values, f"@ top.toml {off}").model is None


def test_a_value_can_be_switched_off(recipes: Recipes) -> None:
    recipes.write(off="limits.max_height = false", on="limits.max_height = 5")
    assert recipes.resolve(Values).limits.max_height == 3
    for off in ("--no-limits.max-height", "--limits.max-height false", "@ off.toml"):
        assert recipes.resolve(Values, off).limits.max_height is None
    assert recipes.resolve(Values, "@ off.toml @ on.toml").limits.max_height == 5


def test_an_option_of_a_plugin_can_be_switched_off(recipes: Recipes) -> None:
    recipes.write(off="model = {type = 'toy', dropout = false}")
    for argv in (
        "@ off.toml",
        "--model toy --no-model.dropout",
        "--model toy --model.dropout false",
    ):
        assert recipes.resolve(Values, argv).model.options["dropout"] is None


def test_switching_off_what_cannot_be_off_is_an_error(recipes: Recipes) -> None:
    assert recipes.error(Values, "--no-whole --no-limits") == (
        "2 things are wrong with the recipe:\n"
        "  --no-whole: `whole` is false; expected a whole number\n"
        "  --no-limits: `limits` is false; expected a table"
    )


def test_plugins_of_a_section_that_is_off_are_not_loaded(recipes: Recipes) -> None:
    assert recipes.resolve(Machine, "--ckpt.backend nowhere --no-ckpt").ckpt is None
