"""The command line: which files it merges, and what its flags say."""

from __future__ import annotations

import datetime
import os
import shlex
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import tomli

from torchrl_ckpt.errors import RecipeError
from torchrl_ckpt.recipe.files import INCLUDE, Include
from torchrl_ckpt.recipe.normal_form import node_of
from torchrl_ckpt.recipe.origin import Origin
from torchrl_ckpt.recipe.shape import Shape
from torchrl_ckpt.recipe.tree import Key, Leaf, Node, Table, merge, nest
from torchrl_ckpt.recipe.words import describe


@dataclass
class CommandLine:
    """A command line, taken apart. All its flags together are one layer."""

    flags: Table
    root_files: list[Include] = field(default_factory=list)
    section_files: list[Include] = field(default_factory=list)


@dataclass(frozen=True)
class Flag:
    """A flag's name, taken apart: the key, its shape, and whether `no-` went before it."""

    name: str
    key: Key
    shape: Shape | None
    negative: bool = False

    @property
    def is_switch(self) -> bool:
        """Whether the bare flag means on."""
        shape = self.shape
        return shape is not None and (shape.core is bool or bool(shape.section and shape.optional))

    @property
    def takes_file(self) -> bool:
        """Whether `@ file` may follow it."""
        return self.shape is not None and self.shape.is_table and not self.negative

    @property
    def takes_any_number(self) -> bool:
        """Whether nothing is known of its value, as for a plugin's option."""
        return self.shape is None or self.shape.core is Any


def read_command_line(argv: Sequence[str], root: Shape) -> CommandLine:
    """Take `argv` apart. Keys that `root` does not know stay in, to be reported with all others."""
    base = Path.cwd()
    line = CommandLine(Table({}, Origin("the command line", base)))
    words = deque(argv)
    while words:
        word = words.popleft()
        if word.startswith(INCLUDE):
            line.root_files.append(_include(word, words, (), ""))
        elif word.startswith("--") and len(word) > 2:
            _read_flag(word, words, root, base, line)
        else:
            raise RecipeError(
                f"`{word}`: neither a flag nor the value of one."
                f" A recipe is given as `@ {word}`, a value right after its flag"
            )
    return line


def _read_flag(word: str, words: deque[str], root: Shape, base: Path, line: CommandLine) -> None:
    name, given, value = word.partition("=")
    flag = _identify(name, root, bare=not given and not (words and _is_value(words[0])))
    if flag.negative and given:
        raise RecipeError(f"`{word}`: `{name}` takes no value")
    front = value if given else (words[0] if words else "")
    if flag.takes_file and front.startswith(INCLUDE):
        file = value if given else words.popleft()
        line.section_files.append(_include(file, words, flag.key, f"{name} "))
        return
    values = [value] if given else _take_values(flag, words)
    text = word if given else shlex.join([name, *values])
    origin = Origin(text, base)
    node = _node(flag, values, origin)
    line.flags = merge(line.flags, nest(flag.key, node, origin), by_type=False)


def _identify(name: str, root: Shape, *, bare: bool) -> Flag:
    """`--no-x` is the key `no_x` if there is one, else `x` switched off."""
    key = tuple(name.removeprefix("--").replace("-", "_").split("."))
    if not all(key):
        raise RecipeError(f"`{name}`: a flag is the dotted name of a key, as in `--a.b`")
    shape = root.find(key)
    positive = (key[0].removeprefix("no_"), *key[1:])
    if shape is None and positive != key and (bare or root.find(positive)):
        return Flag(name, positive, root.find(positive), negative=True)
    return Flag(name, key, shape)


def _take_values(flag: Flag, words: deque[str]) -> list[str]:
    """Take the words from the front of `words` that are this flag's value."""
    values: list[str] = []
    if flag.negative:
        most = 0
    elif flag.is_switch:
        most = 1 if words and words[0] in ("true", "false") else 0
    elif flag.takes_any_number or (flag.shape and flag.shape.items):
        most = len(words)
    else:
        most = 1
    while len(values) < most and words and _is_value(words[0]):
        values.append(words.popleft())
    if not (values or flag.negative or flag.is_switch or flag.takes_any_number):
        assert flag.shape
        more = f", or `{flag.name} @ FILE`" if flag.shape.is_table else ""
        raise RecipeError(f"`{flag.name}` needs a value: {describe(flag.shape)}{more}")
    return values


def _is_value(word: str) -> bool:
    """What begins with `--` or `@` is a value only as `--flag=--value`."""
    return not word.startswith(("--", INCLUDE))


def _include(word: str, words: deque[str], at: Key, flag: str) -> Include:
    """The include `@file`, or `@` with the file taken from the front of `words`."""
    name = word.removeprefix(INCLUDE).strip()
    if not name:
        if not words:
            raise RecipeError(f"`{flag}@` needs the name of a file behind it")
        name = words.popleft()
    return Include(Path(os.path.abspath(name)), at, f"`{flag}@ {name}` on the command line")


def _node(flag: Flag, values: list[str], origin: Origin) -> Node:
    if flag.negative:
        return node_of(False, flag.shape, origin)
    if not values:
        return node_of(True, flag.shape, origin)
    if flag.shape and flag.shape.is_table:
        value = _literal(values[0])
        is_name = flag.shape.kind and not isinstance(value, dict) and value is not False
        return node_of(values[0] if is_name else value, flag.shape, origin)
    first, *others = _readings(values)
    return Leaf(first, origin, tuple(others))


def _readings(values: list[str]) -> list[Any]:
    """What the words of a value may mean, the likeliest first. The schema chooses among them."""
    literals = [_literal(value) for value in values]
    lists: list[Any] = [literals, values]
    return lists if len(values) > 1 else [literals[0], values[0], *lists]


def _literal(word: str) -> Any:
    """The word as a TOML value, or as the text that it is."""
    try:
        document = tomli.loads(f"value = {word}")
    except tomli.TOMLDecodeError:
        return word
    value = document.pop("value")
    is_date = isinstance(value, datetime.date | datetime.time)
    return word if document or is_date else value
