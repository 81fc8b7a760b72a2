"""The several ways to write a thing in a recipe, brought to one."""

from __future__ import annotations

from typing import Any

from torchrl_ckpt.config.option_spec import OptionSpec
from torchrl_ckpt.recipe.tree import Leaf, Node, Origin, Table


def node_of(value: Any, shape: OptionSpec | None, origin: Origin) -> Node:
    """The node for `value` where the schema expects `shape`, or knows no such key (None).

    `ckpt = true` and `ckpt = false` switch a section on and off; `loss = "grpo"` is short for
    `loss = {type = "grpo"}`.
    """
    if isinstance(value, dict):
        entries = {
            name: node_of(inner, shape and shape.child(name), origin)
            for name, inner in value.items()
        }
        return Table(entries, origin)
    if shape and shape.is_table and shape.optional:
        if value is False:
            return Table({}, origin, switch=False)
        if value is True and shape.section:
            return Table({}, origin)
    if shape and shape.kind and isinstance(value, str):
        return Table({"type": Leaf(value, origin)}, origin)
    return Leaf(value, origin)
