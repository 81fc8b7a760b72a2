"""The recipe before it is checked: a tree of tables and values, each of known origin."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import reduce
from typing import Any

from torchrl_ckpt.recipe.origin import Origin

Key = tuple[str, ...]
"""A dotted key in parts: `("ckpt", "keep")`."""


@dataclass(frozen=True)
class Leaf:
    """A value. A flag's text can be read in several ways; `readings` are the others than `value`."""

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


@dataclass(frozen=True)
class Composition:
    """All layers of a recipe merged, not yet validated."""

    tree: Table

    def node(self, key: Key) -> Node | None:
        """The node at `key`; for a key inside a plain value (an array, say) that value."""
        node: Node = self.tree
        for part in key:
            if isinstance(node, Leaf):
                break
            if part not in node.entries:
                return None
            node = node.entries[part]
        return node


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


def nest(key: Key, node: Node, origin: Origin) -> Node:
    """`node` inside the tables that `key` names, all of them switched on."""
    return reduce(lambda inner, name: Table({name: inner}, origin), reversed(key), node)


def _is_other_type(under: Table, over: Table) -> bool:
    old, new = under.entries.get("type"), over.entries.get("type")
    return isinstance(old, Leaf) and isinstance(new, Leaf) and old.value != new.value
