"""A file beats the files that it includes, and each mistake is reported with its place."""

from __future__ import annotations

import pytest

from tests.support.recipe_files import Recipes
from tests.support.toy_schemas import Machine, Values


def test_a_file_beats_what_it_includes(recipes: Recipes) -> None:
    recipes.write(base="whole = 1\nnumber = 1.0", top='"@" = "base.toml"\nwhole = 2')
    values = recipes.resolve(Values, "@ top.toml")
    assert (values.whole, values.number) == (2, 1.0)


def test_a_file_beats_what_it_includes_wherever_the_include_stands(recipes: Recipes) -> None:
    recipes.write(base="speed = 9", top='[limits]\nspeed = 2\n"@" = "base.toml"')
    assert recipes.resolve(Values, "@ top.toml").limits.speed == 2


def test_includes_are_merged_from_left_to_right(recipes: Recipes) -> None:
    recipes.write(
        left="whole = 1\nnumber = 1.0", right="whole = 2", top='"@" = ["left.toml", "right.toml"]'
    )
    values = recipes.resolve(Values, "@ top.toml")
    assert (values.whole, values.number) == (2, 1.0)


def test_includes_are_merged_depth_first(recipes: Recipes) -> None:
    recipes.write(
        deep="whole = 1\nnumber = 1.0\ntext = 'deep'",
        left='"@" = "deep.toml"\nwhole = 2\nnumber = 2.0',
        right="whole = 3",
        top='"@" = ["left.toml", "right.toml"]',
    )
    values = recipes.resolve(Values, "@ top.toml")
    assert (values.text, values.number, values.whole) == ("deep", 2.0, 3)


def test_an_include_in_a_table_beats_what_the_root_includes(recipes: Recipes) -> None:
    recipes.write(
        base="limits = {speed = 1, names = ['base']}",
        limits="speed = 2",
        top='"@" = "base.toml"\n[limits]\n"@" = "limits.toml"',
    )
    limits = recipes.resolve(Values, "@ top.toml").limits
    assert (limits.speed, limits.names) == (2, ["base"])


@pytest.mark.parametrize(
    "written",
    [
        'limits = "@ limits.toml"',
        'limits = "@limits.toml"',
        '[limits]\n"@" = "limits.toml"',
        'limits = {"@" = ["limits.toml"]}',
        'limits."@" = "limits.toml"',
    ],
)
def test_an_include_can_be_written_in_several_ways(recipes: Recipes, written: str) -> None:
    recipes.write(limits="speed = 2", top=written)
    assert recipes.resolve(Values, "@ top.toml").limits.speed == 2


def test_a_string_with_an_at_sign_is_a_string(recipes: Recipes) -> None:
    recipes.write(top='text = "@ home"\nmodel = {type = "toy", attention = "@ ease"}')
    values = recipes.resolve(Values, "@ top.toml")
    assert values.text == "@ home"
    assert values.model.options["attention"] == "@ ease"


def test_an_include_is_relative_to_the_file_that_has_it(recipes: Recipes) -> None:
    recipes.write(
        a__top='limits = "@ ../b/limits.toml"', b__limits='"@" = "base.toml"', b__base="speed = 7"
    )
    assert recipes.resolve(Values, "@ a/top.toml").limits.speed == 7


def test_a_diamond_is_legal(recipes: Recipes) -> None:
    recipes.write(
        base="whole = 1\nnumber = 1.0",
        left='"@" = "base.toml"\nnumber = 2.0',
        right='"@" = "base.toml"\nwhole = 3',
        top='"@" = ["left.toml", "right.toml"]',
    )
    values = recipes.resolve(Values, "@ top.toml")
    assert (values.whole, values.number) == (3, 1.0)  # all of right.toml beats left.toml


def test_a_circle_of_includes_is_an_error_that_shows_the_chain(recipes: Recipes) -> None:
    recipes.write(
        top='\nlimits = "@ a.toml"', a='"@" = "sub/b.toml"', sub__b='speed = 1\n"@" = "../a.toml"'
    )
    assert recipes.error(Values, "@ top.toml") == (
        "recipes include each other in a circle:\n"
        "  a.toml:1 includes `sub/b.toml`\n"
        "  sub/b.toml:2 includes `../a.toml`"
    )


def test_includes_that_double_are_refused_before_long(recipes: Recipes) -> None:
    recipes.write(f0="whole = 1")
    for n in range(1, 30):
        recipes.write(**{f"f{n}": f'"@" = ["f{n - 1}.toml", "f{n - 1}.toml"]'})
    assert "that is the include number 1001" in recipes.error(Values, "@ f29.toml")


def test_a_chain_of_includes_has_an_end(recipes: Recipes) -> None:
    recipes.write(f0="whole = 1")
    for n in range(1, 60):
        recipes.write(**{f"f{n}": f'"@" = "f{n - 1}.toml"'})
    assert recipes.error(Values, "@ f59.toml").endswith("50 files deep: that is too deep")
    assert recipes.resolve(Values, "@ f49.toml").whole == 1


def test_a_file_without_an_end_is_refused(recipes: Recipes) -> None:
    recipes.write(top='"@" = "/dev/zero"')
    assert "a recipe has at most" in recipes.error(Values, "@ top.toml")


def test_a_missing_file_is_reported_with_the_place_that_includes_it(recipes: Recipes) -> None:
    recipes.write(top='whole = 1\nlimits = "@ sub/gone.toml"')
    assert recipes.error(Values, "@ top.toml") == (
        "top.toml:2 includes `sub/gone.toml`: there is no file `sub/gone.toml`"
    )
    assert recipes.error(Values, "--limits @ gone.toml") == (
        "`--limits @ gone.toml` on the command line: there is no file `gone.toml`"
    )
    assert recipes.error(Values, "@gone.toml") == (
        "`@ gone.toml` on the command line: there is no file `gone.toml`"
    )


def test_anything_but_a_toml_file_is_refused(recipes: Recipes) -> None:
    recipes.write(
        directory='"@" = "sub"', binary='"@" = "weights"', number='"@" = [1]', sub__empty=""
    )
    (recipes.directory / "weights").write_bytes(b"\xff\xfe\x00")
    assert recipes.error(Values, "@ directory.toml") == (
        "directory.toml:1 includes `sub`: `sub` is a directory, not a TOML file"
    )
    assert recipes.error(Values, "@ binary.toml") == (
        "binary.toml:1 includes `weights`: `weights` is not a TOML file: it is not UTF-8 text"
    )
    assert recipes.error(Values, "@ number.toml") == (
        'number.toml:1: "@" takes the name of a file or a list of names'
    )


def test_bad_syntax_is_reported_with_file_and_line(recipes: Recipes) -> None:
    recipes.write(top="whole = 1\nnumber = = 2\n")
    assert recipes.error(Values, "@ top.toml") == "top.toml:2: not valid TOML: Invalid value"


def test_a_section_can_be_brought_in_from_the_command_line(recipes: Recipes) -> None:
    recipes.write(a="speed = 2", b="max_height = 5", steps="steps = 4")
    for argv in (
        "--part.limits @ a.toml --part.limits @b.toml",
        "--part.limits=@a.toml --part.limits=@ b.toml",
    ):
        limits = recipes.resolve(Machine, argv).part.limits
        assert (limits.speed, limits.max_height) == (2, 5)
    assert recipes.resolve(Machine, "--part @ steps.toml @ steps.toml").part.steps == 4
