"""The recipe before it is checked: a tree of tables and values, each of known origin."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, overload

from torchrl_ckpt.config.option_spec import Key


@dataclass(frozen=True)
class Leaf:
    """A value. What a flag says can be read in several ways: `readings` are the other ones."""

    value: Any
    origin: Origin
    readings: tuple[Any, ...] = ()


@dataclass(frozen=True)
class Table:
    """Keys, and whether the table is switched on.

    `switch` is None for a table that merely holds values in case something else switches it on:
    so the root's `model` waits for an `[inference]` section without bringing it about. Switching
    a table off keeps its keys, and so switching it on again resets nothing. `origin` is the place
    that set the switch.
    """

    entries: Mapping[str, Node]
    origin: Origin
    switch: bool | None = True


Node = Leaf | Table


@overload
def merge(under: Table, over: Table, *, by_type: bool = ...) -> Table: ...
@overload
def merge(under: Node, over: Node, *, by_type: bool = ...) -> Node: ...
def merge(under: Node, over: Node, *, by_type: bool = True) -> Node:
    """Tables merge deeply, anything else replaces, and so does a table of another `type`.

    The last can be left out for what was written in one breath, such as the flags of a command.
    """
    if not (isinstance(under, Table) and isinstance(over, Table)):
        return over
    entries = {} if by_type and _is_other_type(under, over) else dict(under.entries)
    for name, node in over.entries.items():
        known = entries.get(name)
        entries[name] = node if known is None else merge(known, node, by_type=by_type)
    return replace(under if over.switch is None else over, entries=entries)


def nest(key: Key, node: Node, origin: Origin) -> Table:
    """`node` at `key`, in tables that are switched on; `node` itself, a table, at the root."""
    for name in reversed(key):
        node = Table({name: node}, origin)
    assert isinstance(node, Table)
    return node


def _is_other_type(under: Table, over: Table) -> bool:
    old, new = under.entries.get("type"), over.entries.get("type")
    return isinstance(old, Leaf) and isinstance(new, Leaf) and old.value != new.value


@dataclass(frozen=True)
class Origin:
    """The place of a value, for messages, and what a relative path in it is relative to.

    `place` is `recipes/reverse/train.toml:7`, or a flag as it was typed, or `default`; `via` are
    the files that included that file, the nearest first. `base` is None where a relative path
    stays as it is.
    """

    place: str
    base: Path | None = None
    via: tuple[str, ...] = ()

    @property
    def is_given(self) -> bool:
        """Whether a user wrote it, in a file or on the command line."""
        return self.place != DEFAULT.place

    def __str__(self) -> str:
        return ", via ".join((self.place, *self.via))


DEFAULT = Origin("default")
"""The origin of what the schema itself says."""


def display(path: Path) -> str:
    """`path` as a user would type it: relative where it lies below the working directory."""
    relative = os.path.relpath(path)
    return str(path) if relative.startswith("..") else relative
