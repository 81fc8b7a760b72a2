"""Every key is a flag, and a flag's value is read as the type that the schema expects."""

from __future__ import annotations

from typing import Any

import pytest

from tests.support.recipe_files import Recipes
from tests.support.toy_schemas import Machine, Values

EQUAL_FORMS = [
    ("--limits.max-height 4", "--limits.max_height=4"),
    ("--limits.max_height 4", "--limits.max-height=4"),
]


@pytest.mark.parametrize("argv", [form for pair in EQUAL_FORMS for form in pair])
def test_dashes_and_underscores_in_names_are_equal(recipes: Recipes, argv: str) -> None:
    assert recipes.resolve(Values, argv).limits.max_height == 4


@pytest.mark.parametrize(
    ("argv", "name", "value"),
    [
        ("--text some-text_here", "text", "some-text_here"),
        ("--text 123", "text", "123"),
        ("--text 1e3", "text", "1e3"),
        ("--text true", "text", "true"),
        ("--text 2020-01-01", "text", "2020-01-01"),
        ("--text [1]", "text", "[1]"),
        ("--text=--x", "text", "--x"),
        ("--text=@x", "text", "@x"),
        ("--text=a=b", "text", "a=b"),
        ("--text=", "text", ""),
        ("--maybe-text 5", "maybe_text", "5"),
        ("--number 3", "number", 3.0),
        ("--number -3e-4", "number", -3e-4),
        ("--whole -1", "whole", -1),
        ("--whole 1_000", "whole", 1000),
        ("--step 20", "step", 20),
        ("--step latest", "step", "latest"),
        ("--mode fast", "mode", "fast"),
        ("--pair 0.5 1", "pair", (0.5, 1.0)),
        ("--pair [0.5,1]", "pair", (0.5, 1.0)),
        ("--words a", "words", ["a"]),
        ("--words a 1 true", "words", ["a", "1", "true"]),
        ("--words ['a','b']", "words", ["a", "b"]),
        ("--words 1", "words", ["1"]),
        ("--words []", "words", []),
        ("--words=a", "words", ["a"]),
        ("--numbers 1 -2", "numbers", [1, -2]),
        ("--numbers 1", "numbers", [1]),
        ("--table {a=1}", "table", {"a": 1}),
        ("--table.a 1 --table.b 2", "table", {"a": 1, "b": 2}),
        ("--no-cache 3", "no_cache", 3),
    ],
)
def test_a_value_is_read_as_the_type_of_its_key(
    recipes: Recipes, argv: str, name: str, value: Any
) -> None:
    assert getattr(recipes.resolve(Values, argv), name) == value


@pytest.mark.parametrize(
    ("argv", "value"),
    [
        ("--yes", True),
        ("--yes true", True),
        ("--yes=true", True),
        ("--yes false", False),
        ("--no-yes", False),
        ("--yes --no-yes", False),
        ("--no-yes --yes", True),
    ],
)
def test_a_boolean_needs_no_value(recipes: Recipes, argv: str, value: bool) -> None:
    assert recipes.resolve(Values, argv).yes is value


def test_no_is_false_where_a_boolean_can_be_off(recipes: Recipes) -> None:
    assert recipes.resolve(Values, "--no-maybe-yes").maybe_yes is False


def test_a_plugin_is_given_by_name_alone(recipes: Recipes) -> None:
    for argv in ("--model toy", "--model=toy", "--model.type toy", "--model {type='toy'}"):
        assert recipes.resolve(Values, argv).model.type == "toy"


def test_the_position_of_a_file_among_the_flags_does_not_matter(recipes: Recipes) -> None:
    recipes.write(top="whole = 1\nnumber = 1.0")
    for argv in (
        "@ top.toml --whole 2 --yes",
        "--whole 2 --yes @top.toml",
        "--yes @ top.toml --whole 2",
    ):
        values = recipes.resolve(Values, argv)
        assert (values.whole, values.number) == (2, 1.0)


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ("--whole", "`--whole` needs a value: a whole number"),
        ("--whole --yes", "`--whole` needs a value: a whole number"),
        ("--text @ x.toml", "`--text` needs a value: text"),
        ("--words --yes", "`--words` needs a value: a list of texts"),
        (
            "--limits",
            "`--limits` needs a value: a table, or `--limits @ FILE`",
        ),
        (
            "--model",
            "`--model` needs a value: the name of a plugin or a table with its `type`, or off,"
            " or `--model @ FILE`",
        ),
        ("--no-extra=1", "`--no-extra=1`: `--no-extra` takes no value"),
        ("--limits @", "`--limits @` needs the name of a file after it"),
        ("@", "`@` needs the name of a file after it"),
        (
            "--limits..speed 3",
            "`--limits..speed`: a flag is the dotted name of a key, as in `--a.b`",
        ),
        (
            "top.toml",
            "`top.toml`: neither a flag nor the value of one. A recipe is given as `@ top.toml`,"
            " a value right after its flag",
        ),
    ],
)
def test_a_command_line_that_makes_no_sense_is_explained(
    recipes: Recipes, argv: str, message: str
) -> None:
    assert recipes.error(Values, argv) == message


def test_one_flag_takes_one_value(recipes: Recipes) -> None:
    assert recipes.error(Machine, "--steps 1 2").startswith("`2`: neither a flag nor")
