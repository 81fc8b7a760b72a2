"""The command line: the files that it merges, and the values that its flags give."""

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
    """A parsed command line. All its flags together are one layer."""

    flags: Table
    root_files: list[Include] = field(default_factory=list)
    section_files: list[Include] = field(default_factory=list)


def read_command_line(argv: Sequence[str], root: OptionSpec) -> CommandLine:
    """Parse `argv`. Flags that `root` does not know are kept, to be reported by `validate`.

    Raises `RecipeError` for arguments that are neither a flag nor the value of one.
    """
    base = Path.cwd()
    line = CommandLine(Table({}, Origin("the command line", base)))
    arguments = deque(argv)
    while arguments:
        argument = arguments.popleft()
        if argument.startswith(INCLUDE):
            line.root_files.append(_include(argument, arguments, (), ""))
        elif argument.startswith("--") and len(argument) > 2:
            _read_flag(argument, arguments, root, base, line)
        else:
            raise RecipeError(
                f"`{argument}`: neither a flag nor the value of one."
                f" A recipe is given as `@ {argument}`, a value right after its flag"
            )
    return line


@dataclass(frozen=True)
class _Flag:
    """A flag's key, its spec if there is such a key, and whether it begins with `--no-`."""

    name: str
    key: Key
    spec: OptionSpec | None
    is_negative: bool = False

    @property
    def takes_file(self) -> bool:
        return self.spec is not None and self.spec.is_table and not self.is_negative

    @property
    def is_switch(self) -> bool:
        """Whether the flag has a meaning without a value: on."""
        spec = self.spec
        return spec is not None and (spec.core is bool or bool(spec.section and spec.optional))


def _read_flag(
    argument: str, rest: deque[str], root: OptionSpec, base: Path, line: CommandLine
) -> None:
    """Add the flag `argument` to `line`, taking its values from the front of `rest`."""
    name, has_value, value = argument.partition("=")
    flag = _identify(name, root, is_bare=not has_value and not (rest and _is_value(rest[0])))
    if flag.is_negative and has_value:
        raise RecipeError(f"`{argument}`: `{name}` takes no value")
    front = value if has_value else (rest[0] if rest else "")
    if flag.takes_file and front.startswith(INCLUDE):
        file = value if has_value else rest.popleft()
        line.section_files.append(_include(file, rest, flag.key, f"{name} "))
        return
    values = [value] if has_value else _take_values(flag, rest)
    origin = Origin(argument if has_value else shlex.join([name, *values]), base, flag=name)
    node = _node(flag, values, origin)
    line.flags = merge(line.flags, nest(flag.key, node, origin), by_type=False)


def _identify(name: str, root: OptionSpec, *, is_bare: bool) -> _Flag:
    """`--no-x` is the key `no_x` if there is one, otherwise `x` switched off."""
    key = tuple(name.removeprefix("--").replace("-", "_").split("."))
    if not all(key):
        raise RecipeError(f"`{name}`: a flag is the dotted name of a key, as in `--a.b`")
    spec = root.find(key)
    positive = (key[0].removeprefix("no_"), *key[1:])
    if spec is None and positive != key and (is_bare or root.find(positive)):
        return _Flag(name, positive, root.find(positive), is_negative=True)
    return _Flag(name, key, spec)


def _take_values(flag: _Flag, rest: deque[str]) -> list[str]:
    """Take this flag's values from the front of `rest`."""
    spec = flag.spec
    found = list(takewhile(_is_value, rest))
    if spec is None:
        found = list(takewhile(lambda argument: not argument.startswith("--"), rest))
    elif flag.is_negative:
        found = []
    elif flag.is_switch:
        found = [argument for argument in found[:1] if argument in ("true", "false")]
    elif not (spec.is_any or spec.items):
        found = found[:1]
    values = [rest.popleft() for _ in found]
    if spec and not (values or flag.is_negative or flag.is_switch or spec.is_any):
        file_form = f", or `{flag.name} @ FILE`" if flag.takes_file else ""
        raise RecipeError(f"`{flag.name}` needs a value: {describe(spec)}{file_form}")
    return values


def _is_value(argument: str) -> bool:
    """An argument that begins with `--` or `@` is a value only as `--flag=--value`."""
    return not argument.startswith(("--", INCLUDE))


def _include(argument: str, rest: deque[str], at: Key, flag: str) -> Include:
    """The include `@file`, or `@` with the file taken from the front of `rest`."""
    name = argument.removeprefix(INCLUDE).strip()
    if not name:
        if not rest:
            raise RecipeError(f"`{flag}@` needs the name of a file after it")
        name = rest.popleft()
    return Include(Path(os.path.abspath(name)), at, f"`{flag}@ {name}` on the command line")


def _node(flag: _Flag, values: list[str], origin: Origin) -> Node:
    """The node that the flag gives its key."""
    if flag.is_negative or not values:
        return node_of(not flag.is_negative, flag.spec, origin)
    if flag.spec and flag.spec.is_table:
        value = literal(values[0])
        is_name = flag.spec.kind and not isinstance(value, dict) and value is not False
        return node_of(values[0] if is_name else value, flag.spec, origin)
    first, *others = readings(values)
    if isinstance(first, dict):
        return node_of(first, flag.spec, origin)
    return Leaf(first, origin, tuple(others))


def readings(values: Sequence[str]) -> list[Any]:
    """What a flag's values may mean, the likeliest first: a TOML value, the text itself, a list."""
    literals = [literal(value) for value in values]
    lists: list[Any] = [literals, list(values)]
    return lists if len(values) > 1 else [literals[0], values[0], *lists]


def literal(text: str) -> Any:
    """`text` as a TOML value, or as it is."""
    try:
        document = tomli.loads(f"value = {text}")
    except (tomli.TOMLDecodeError, RecursionError):
        return text
    value = document.pop("value")
    is_date = isinstance(value, datetime.date | datetime.time)
    return text if document or is_date else value


def fitting(leaf: Leaf, spec: OptionSpec) -> Any:
    """The first reading that fits `spec`. `false` is off where the type itself has no `false`."""
    value = leaf.value
    if leaf.readings and not spec.accepts(value):
        value = next(filter(spec.accepts, leaf.readings), value)
    return None if value is False and spec.optional and not spec.accepts(False) else value
