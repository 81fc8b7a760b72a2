"""Every value is printed as TOML with the place it comes from."""

from __future__ import annotations

import tomli

from tests.support.recipe_files import Recipes
from tests.support.toy_schemas import Machine, Values


def test_every_value_has_its_origin(recipes: Recipes) -> None:
    recipes.write(
        top="steps = 3\n[part]\n'@' = 'sub/part.toml'",
        sub__part="\nlimits = '@ limits.toml'\nmodel = 'toy'",
        sub__limits="speed = 3e-4",
    )
    lines = recipes.show(Machine, "@ top.toml --part.limits.names a b --ckpt.keep=3 --no-part.ckpt")
    for line in (
        "steps = 3  # top.toml:1",
        "model = false  # default",
        "ckpt.keep = 3  # --ckpt.keep=3",
        'ckpt.backend.type = "dcp"  # default',
        "part.steps = 3  # top.toml:1",
        'part.model.type = "toy"  # sub/part.toml:3, via top.toml',
        'part.model.attention = "sdpa"  # default',
        "part.limits.speed = 0.0003  # sub/limits.toml:1, via sub/part.toml, via top.toml",
        'part.limits.names = ["a", "b"]  # --part.limits.names a b',
        "part.limits.max_height = 3  # default",
        "part.ckpt = false  # --no-part.ckpt",
        "spare = false  # default",
    ):
        assert line in lines


def test_a_default_of_the_command_is_a_default(recipes: Recipes) -> None:
    assert "part.steps = 5  # default" in recipes.show(Machine, "", steps=5)


def test_a_file_elsewhere_is_shown_with_its_whole_path(recipes: Recipes) -> None:
    elsewhere = recipes.directory.parent / f"{recipes.directory.name}_elsewhere.toml"
    elsewhere.write_text("whole = 1")
    assert f"whole = 1  # {elsewhere}:1" in recipes.show(Values, f"@ {elsewhere}")


def test_the_output_is_a_recipe(recipes: Recipes) -> None:
    argv = (
        '--text x"\\y --words a --path p --maybe-yes --no-limits.max-height'
        ' --model toy --model.config {"a.b"=[1]}'
    )
    shown = recipes.show(Values, argv)
    recipes.write(again="\n".join(shown))
    assert tomli.loads("\n".join(shown))["text"] == 'x"\\y'
    assert recipes.resolve(Values, "@ again.toml") == recipes.resolve(Values, argv)
