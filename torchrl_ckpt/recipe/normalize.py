"""Brings the several ways to write a setting in a recipe to one form."""

from __future__ import annotations

from typing import Any

from torchrl_ckpt.config.option_spec import OptionSpec
from torchrl_ckpt.recipe.tree import Leaf, Node, Origin, Table


def node_of(value: Any, spec: OptionSpec | None, origin: Origin) -> Node:
    """Return the node for `value` of an option with `spec`, which is None for an unknown key.

    `ckpt = true` and `ckpt = false` switch a section on and off; `loss = "grpo"` is short for
    `loss = {type = "grpo"}`.
    """
    if isinstance(value, dict):
        entries = {
            name: node_of(inner, spec and spec.child(name), origin) for name, inner in value.items()
        }
        return Table(entries, origin)
    if spec and spec.is_table and spec.optional:
        if value is False:
            return Table({}, origin, switch=False)
        if value is True and spec.section:
            return Table({}, origin)
    if spec and spec.kind and isinstance(value, str):
        return Table({"type": Leaf(value, origin)}, origin)
    return Leaf(value, origin)
