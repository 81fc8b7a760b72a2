"""Composes a recipe from its layers: defaults, root files, section files, flags."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import reduce
from pathlib import Path
from types import MappingProxyType
from typing import Any

from pydantic import BaseModel

from torchrl_ckpt.config.option_spec import REQUIRED, Key, OptionSpec, fields
from torchrl_ckpt.config.section import PluginTable, Section
from torchrl_ckpt.recipe.flags import read_command_line
from torchrl_ckpt.recipe.normalize import node_of
from torchrl_ckpt.recipe.toml_files import Include, file_layers
from torchrl_ckpt.recipe.tree import DEFAULT, Leaf, Node, Origin, Table, merge, nest


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


def compose(
    argv: Sequence[str],
    schema: type[Section],
    *,
    files: Sequence[Path] = (),
    defaults: Mapping[str, Any] = MappingProxyType({}),
) -> Composition:
    """Merge the layers of a recipe, each beating those before it.

    `files` are merged at the root, before the files that `argv` names. `defaults` are the values
    that the command itself sets, such as the run's directory; they beat the schema's own only.
    Raises `RecipeError` for a command line or a file that cannot be read. Unknown keys and values
    that do not fit are left to `validate`.
    """
    root = OptionSpec(schema)
    line = read_command_line(argv, root)
    given = [Include(Path(os.path.abspath(path)), (), "the recipe to run") for path in files]

    def layers() -> Iterator[Table]:
        yield _schema_defaults(schema)
        yield _share(_command_defaults(defaults, root), root)
        for include in [*given, *line.root_files, *line.section_files]:
            for layer in file_layers(include, root):
                yield _share(nest(layer.at, layer.tree, layer.tree.origin), root)
        yield _share(line.flags, root)

    tree: Table = reduce(merge, layers())
    return Composition(_without_fragments(tree, root))


def root_files(argv: Sequence[str], schema: type[Section]) -> list[Path]:
    """The files that a command line merges at the root, in order."""
    return [include.path for include in read_command_line(argv, OptionSpec(schema)).root_files]


def _schema_defaults(section: type, given: BaseModel | None = None) -> Table:
    """The defaults of every key below `section`, or the values of the instance `given`.

    A section that is off holds its own defaults all the same, ready to be switched on.
    """
    entries: dict[str, Node] = {}
    for name, spec in fields(section).items():
        default = spec.default if given is None else getattr(given, name)
        if spec.section:
            instance = default if isinstance(default, BaseModel) else None
            table = _schema_defaults(spec.section, instance)
            is_on = instance is not None or not spec.optional
            entries[name] = table if is_on else Table(table.entries, DEFAULT, switch=None)
        elif default is not REQUIRED and not (default is None and spec.is_table):
            plain = default.model_dump() if isinstance(default, PluginTable) else default
            entries[name] = node_of(plain, spec, DEFAULT)
    return Table(entries, DEFAULT)


def _command_defaults(defaults: Mapping[str, Any], root: OptionSpec) -> Table:
    origin = Origin(DEFAULT.location, Path.cwd())
    entries = {name: node_of(value, root.child(name), origin) for name, value in defaults.items()}
    return Table(entries, origin)


def _share(layer: Table, root: OptionSpec) -> Table:
    """Put the layer's shared keys beneath its sections' own keys.

    This switches no section on: see `Table.switch`.
    """
    entries = dict(layer.entries)
    for name in root.shared_keys:
        if name in layer.entries:
            for section in root.sections_sharing(name):
                shared = Table({name: layer.entries[name]}, layer.origin, switch=None)
                own = entries.get(section)
                entries[section] = shared if own is None else merge(shared, own)
    return replace(layer, entries=entries)


def _without_fragments(tree: Table, root: OptionSpec) -> Table:
    """Drop the root's plugin tables that lack a `type`.

    `--model.name x` sets an option of the models that the sections name, and names none itself.
    """
    entries = {
        name: node
        for name, node in tree.entries.items()
        if not (
            name in root.shared_keys
            and (spec := root.child(name))
            and spec.kind
            and isinstance(node, Table)
            and "type" not in node.entries
        )
    }
    return replace(tree, entries=entries)
