"""A relative path is relative to where it is written."""

from __future__ import annotations

import pytest

from tests.support.recipe_files import Recipes
from tests.support.toy_schemas import Values
from torchrl_ckpt.config.inference import InferenceConfig


def test_a_path_in_a_file_is_relative_to_that_file(recipes: Recipes) -> None:
    recipes.write(sub__values="path = 'a/b'\npaths = ['../c', '/d']", top="'@' = 'sub/values.toml'")
    values = recipes.resolve(Values, "@ top.toml")
    assert values.path == recipes.directory / "sub/a/b"
    assert [str(path) for path in values.paths] == [str(recipes.directory / "c"), "/d"]


def test_a_path_on_the_command_line_is_relative_to_the_working_directory(recipes: Recipes) -> None:
    recipes.write(sub__values="path = 'a'")
    values = recipes.resolve(Values, "@ sub/values.toml --path a --paths b ../c")
    assert values.path == recipes.directory / "a"
    assert values.paths == [recipes.directory / "b", recipes.directory.parent / "c"]


def test_a_default_of_the_command_is_relative_to_the_working_directory(recipes: Recipes) -> None:
    inference = recipes.resolve(InferenceConfig, "--model toy", output_dir="outputs/x")
    assert inference.output_dir == recipes.directory / "outputs/x"


@pytest.mark.parametrize("name", ["./here", "../there", "/abs", "model.toml", "sub"])
def test_a_path_or_name_is_a_path_if_it_looks_like_one_or_exists(
    recipes: Recipes, name: str
) -> None:
    recipes.write(sub__model="", sub__sub__x="")
    (recipes.directory / "sub/top.toml").write_text(f"model = {{type = 'toy', name = '{name}'}}")
    expected = (recipes.directory / "sub").joinpath(name).resolve()
    model = recipes.resolve(Values, "@ sub/top.toml").model
    assert model.options["name"] == str(expected)


@pytest.mark.parametrize("name", ["Qwen/Qwen3-0.6B", "tiny", ".hidden", ""])
def test_a_path_or_name_is_otherwise_a_name(recipes: Recipes, name: str) -> None:
    recipes.write(top=f"model = {{type = 'toy', name = '{name}'}}")
    assert recipes.resolve(Values, "@ top.toml").model.options["name"] == name


def test_paths_among_a_plugins_options_are_absolute(recipes: Recipes) -> None:
    recipes.write(sub__top="model = {type = 'toy', files = ['x', '/y']}")
    files = recipes.resolve(Values, "@ sub/top.toml").model.options["files"]
    assert files == [str(recipes.directory / "sub/x"), "/y"]


def test_text_is_never_a_path(recipes: Recipes) -> None:
    recipes.write(top="text = './x'")
    assert recipes.resolve(Values, "@ top.toml").text == "./x"
