"""Recipes and command lines of any text: a recipe, or an error in words."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.commands import RECIPES
from tests.support.fuzzing import NUMBERS, TEXTS
from tests.support.growth import bounded
from torchrl_ckpt.launcher.recipe_loader import detect_command, load_recipe
from torchrl_ckpt.plugin_api.errors import UserError

COMMANDS = ("sft", "rl", "inference")
LINES = sorted(
    {
        line
        for path in RECIPES.rglob("*.toml")
        for line in path.read_text().splitlines()
        if line.strip()
    }
)
FLAGS = sorted({line.split("=")[0].strip() for line in LINES if "=" in line})

FOUND = ["a = " + "[" * 500 + "]" * 500]
"""Texts that were found to break the loader."""

TOML_VALUES = st.one_of(
    NUMBERS.map(str),
    st.sampled_from(
        ['""', '"@ recipe.toml"', "[[[]]]", "{}", "{a = 1}", "1979-05-27T07:32:00Z", "true", "'x'"]
    ),
    st.integers(1, 2000).map(lambda depth: "[" * depth + "]" * depth),
    TEXTS.map(lambda text: f'"{text}"'),
)


@st.composite
def toml_texts(draw: st.DrawFn) -> str:
    """Lines of real recipes, some of them with odd values or broken."""
    lines = draw(st.lists(st.sampled_from(LINES), max_size=8))
    for at in range(len(lines)):
        match draw(st.sampled_from(["keep", "keep", "value", "cut", "key"])):
            case "value":
                lines[at] = f"{lines[at].split('=')[0]} = {draw(TOML_VALUES)}"
            case "cut":
                lines[at] = lines[at][: draw(st.integers(0, len(lines[at])))]
            case "key":
                lines[at] = f"{draw(TEXTS)} = {draw(TOML_VALUES)}"
    return "\n".join(lines)


ARGUMENTS = st.one_of(
    TEXTS,
    st.sampled_from(["@", "recipe.toml", "@ recipe.toml", "--", "-h=", "--ckpt", "--no-ckpt"]),
    st.sampled_from(FLAGS).map(lambda name: f"--{name}"),
    NUMBERS.map(str),
)


@pytest.fixture(name="directory")
def change_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def load(directory: Path, command: str, text: str, argv: list[str]) -> None:
    """Load a recipe; only a `UserError` may come of it."""
    path = directory / "recipe.toml"
    path.write_text(text, errors="surrogateescape" if text.isascii() else "surrogatepass")
    with suppress(UserError):
        load_recipe(command, argv, files=[path])
    with suppress(UserError):
        detect_command([path])


@pytest.mark.parametrize("text", FOUND)
def test_a_recipe_that_was_found_to_break_is_refused(directory: Path, text: str) -> None:
    load(directory, "sft", text, [])


@bounded()
@given(command=st.sampled_from(COMMANDS), text=toml_texts())
def test_a_recipe_of_any_lines_is_read_or_refused(directory: Path, command: str, text: str) -> None:
    load(directory, command, text, [])


@bounded()
@given(command=st.sampled_from(COMMANDS), argv=st.lists(ARGUMENTS, max_size=6))
def test_a_command_line_of_any_arguments_is_read_or_refused(
    directory: Path, command: str, argv: list[str]
) -> None:
    load(directory, command, (RECIPES / "sft_reverse.toml").read_text(), _without_help(argv))


@bounded()
@given(content=st.binary(max_size=200))
def test_a_recipe_of_any_bytes_is_read_or_refused(directory: Path, content: bytes) -> None:
    path = directory / "recipe.toml"
    path.write_bytes(content)
    with suppress(UserError):
        load_recipe("sft", [], files=[path])


def _without_help(argv: list[str]) -> list[Any]:
    """A NUL byte cannot stand in a command line."""
    return [word.replace("\0", "") for word in argv if word not in ("-h", "--help")]
