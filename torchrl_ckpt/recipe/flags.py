"""The command line: which files it merges, and what its flags say."""

from __future__ import annotations

import datetime
import os
import shlex
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import takewhile
from pathlib import Path
from typing import Any

import tomli

from torchrl_ckpt.config.describe import describe
from torchrl_ckpt.config.option_spec import Key, OptionSpec
from torchrl_ckpt.plugin_api.errors import RecipeError
from torchrl_ckpt.recipe.normalize import node_of
from torchrl_ckpt.recipe.toml_files import INCLUDE, Include
from torchrl_ckpt.recipe.tree import Leaf, Node, Origin, Table, merge, nest


@dataclass
class CommandLine:
    """A command line, taken apart. All its flags together are one layer."""

    flags: Table
    root_files: list[Include] = field(default_factory=list)
    section_files: list[Include] = field(default_factory=list)


def read_command_line(argv: Sequence[str], root: OptionSpec) -> CommandLine:
    """Take `argv` apart. Flags that `root` does not know stay in, to be reported with all else.

    Raises `RecipeError` for words that are no flag and belong to none.
    """
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


@dataclass(frozen=True)
class _Flag:
    """A flag's key, what the schema says of it, and whether `no-` went before it."""

    name: str
    key: Key
    shape: OptionSpec | None
    negative: bool = False

    @property
    def takes_file(self) -> bool:
        return self.shape is not None and self.shape.is_table and not self.negative

    @property
    def is_switch(self) -> bool:
        """Whether it means something without a value: on."""
        shape = self.shape
        return shape is not None and (shape.core is bool or bool(shape.section and shape.optional))


def _read_flag(
    word: str, words: deque[str], root: OptionSpec, base: Path, line: CommandLine
) -> None:
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
    origin = Origin(word if given else shlex.join([name, *values]), base)
    node = _node(flag, values, origin)
    line.flags = merge(line.flags, nest(flag.key, node, origin), by_type=False)


def _identify(name: str, root: OptionSpec, *, bare: bool) -> _Flag:
    """`--no-x` is the key `no_x` if there is one, else `x` switched off."""
    key = tuple(name.removeprefix("--").replace("-", "_").split("."))
    if not all(key):
        raise RecipeError(f"`{name}`: a flag is the dotted name of a key, as in `--a.b`")
    shape = root.find(key)
    positive = (key[0].removeprefix("no_"), *key[1:])
    if shape is None and positive != key and (bare or root.find(positive)):
        return _Flag(name, positive, root.find(positive), negative=True)
    return _Flag(name, key, shape)


def _take_values(flag: _Flag, words: deque[str]) -> list[str]:
    """Take the words from the front of `words` that are this flag's value."""
    shape = flag.shape
    found = list(takewhile(_is_value, words))
    if shape is None:
        found = list(takewhile(lambda word: not word.startswith("--"), words))
    elif flag.negative:
        found = []
    elif flag.is_switch:
        found = [word for word in found[:1] if word in ("true", "false")]
    elif not (shape.is_any or shape.items):
        found = found[:1]
    values = [words.popleft() for _ in found]
    if shape and not (values or flag.negative or flag.is_switch or shape.is_any):
        more = f", or `{flag.name} @ FILE`" if flag.takes_file else ""
        raise RecipeError(f"`{flag.name}` needs a value: {describe(shape)}{more}")
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


def _node(flag: _Flag, values: list[str], origin: Origin) -> Node:
    """What the flag says of its key."""
    if flag.negative or not values:
        return node_of(not flag.negative, flag.shape, origin)
    if flag.shape and flag.shape.is_table:
        value = literal(values[0])
        is_name = flag.shape.kind and not isinstance(value, dict) and value is not False
        return node_of(values[0] if is_name else value, flag.shape, origin)
    first, *others = readings(values)
    if isinstance(first, dict):
        return node_of(first, flag.shape, origin)
    return Leaf(first, origin, tuple(others))


def readings(words: Sequence[str]) -> list[Any]:
    """The likeliest first: a TOML value, the text itself, a list."""
    literals = [literal(word) for word in words]
    lists: list[Any] = [literals, list(words)]
    return lists if len(words) > 1 else [literals[0], words[0], *lists]


def literal(word: str) -> Any:
    """The word as a TOML value, or as the text that it is."""
    try:
        document = tomli.loads(f"value = {word}")
    except tomli.TOMLDecodeError:
        return word
    value = document.pop("value")
    is_date = isinstance(value, datetime.date | datetime.time)
    return word if document or is_date else value


def fitting(leaf: Leaf, shape: OptionSpec) -> Any:
    """The first reading that fits. `false` is off where the type itself knows no `false`."""
    value = leaf.value
    if leaf.readings and not shape.accepts(value):
        value = next(filter(shape.accepts, leaf.readings), value)
    return None if value is False and shape.optional and not shape.accepts(False) else value
