"""The recipe before it is validated: a tree of tables and values, each with its origin."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, overload

from torchrl_ckpt.config.option_spec import Key


@dataclass(frozen=True)
class Leaf:
    """A value. For the text of a flag, `readings` are the other values that it may mean."""

    value: Any
    origin: Origin
    readings: tuple[Any, ...] = ()


@dataclass(frozen=True)
class Table:
    """Keys, and whether the table is switched on.

    `switch` is None for a table that only holds values in case another layer switches it on: the
    root's `model` is ready for an `[inference]` section without creating one. Switching a table
    off keeps its keys, so switching it on again resets nothing. `origin` is the place that set the
    switch.
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
    """Merge tables deeply; anything else in `over` replaces what is in `under`.

    With `by_type`, a table with another `type` replaces the table below it as a whole. Without, as
    among the flags of one command, its keys are merged nevertheless.
    """
    if not (isinstance(under, Table) and isinstance(over, Table)):
        return over
    entries = {} if by_type and _is_other_type(under, over) else dict(under.entries)
    for name, node in over.entries.items():
        known = entries.get(name)
        entries[name] = node if known is None else merge(known, node, by_type=by_type)
    return replace(under if over.switch is None else over, entries=entries)


def nest(key: Key, node: Node, origin: Origin) -> Table:
    """Put `node` at `key`, in tables that are switched on. At the root, `node` is a table."""
    for name in reversed(key):
        node = Table({name: node}, origin)
    assert isinstance(node, Table)
    return node


def _is_other_type(under: Table, over: Table) -> bool:
    old, new = under.entries.get("type"), over.entries.get("type")
    return isinstance(old, Leaf) and isinstance(new, Leaf) and old.value != new.value


@dataclass(frozen=True)
class Origin:
    """Where a value was written, for messages, and what a relative path in it is relative to.

    `location` is `recipes/reverse/train.toml:7`, a flag as it was typed, or `default`; `via` are
    the files that included that file, the nearest first. `base` is None where a relative path stays
    as it is.
    """

    location: str
    base: Path | None = None
    via: tuple[str, ...] = ()
    flag: str = ""
    """The flag without its value, if it was given on the command line."""

    @property
    def is_given(self) -> bool:
        """Whether a user wrote it, in a file or on the command line."""
        return self.location != DEFAULT.location

    def __str__(self) -> str:
        return ", via ".join((self.location, *self.via))


DEFAULT = Origin("default")
"""The origin of the schema's own defaults."""


def display(path: Path) -> str:
    """`path` as a user would type it: relative if it is below the working directory."""
    relative = os.path.relpath(path)
    return str(path) if relative.startswith("..") else relative
