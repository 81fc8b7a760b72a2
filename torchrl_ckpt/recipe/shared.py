"""Shared keys: what the root of a recipe says to several sections at once."""

from __future__ import annotations

from dataclasses import replace

from torchrl_ckpt.recipe.shape import Shape, fields
from torchrl_ckpt.recipe.tree import Table, merge


def shared_keys(root: Shape) -> tuple[str, ...]:
    """The keys of the root that reach every section that has them."""
    return getattr(root.section, "shared_keys", ())


def sections_sharing(root: Shape, name: str) -> list[str]:
    """The sections that the shared key `name` reaches."""
    if name not in shared_keys(root):
        return []
    return [
        section
        for section, shape in fields(root.section).items()
        if section not in shared_keys(root) and shape.section and name in fields(shape.section)
    ]


def share(layer: Table, root: Shape) -> Table:
    """Put the layer's shared keys beneath its sections' own keys.

    This switches no section on: see `Table.switch`.
    """
    entries = dict(layer.entries)
    for name in shared_keys(root):
        if name in layer.entries:
            for section in sections_sharing(root, name):
                shared = Table({name: layer.entries[name]}, layer.origin, switch=None)
                own = entries.get(section)
                entries[section] = shared if own is None else merge(shared, own)
    return replace(layer, entries=entries)


def without_fragments(tree: Table, root: Shape) -> Table:
    """Drop the root's plugin tables that lack a `type`.

    `--model.name x` speaks of the models that the sections name, and of none at the root.
    """
    entries = {
        name: node
        for name, node in tree.entries.items()
        if not (
            name in shared_keys(root)
            and (shape := root.child(name))
            and shape.kind
            and isinstance(node, Table)
            and "type" not in node.entries
        )
    }
    return replace(tree, entries=entries)
