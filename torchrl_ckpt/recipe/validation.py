"""Turns the merged tree into an instance of the schema, or into one error that tells all."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any, TypeVar

from pydantic import BaseModel, TypeAdapter, ValidationError
from pydantic_core import to_jsonable_python

from torchrl_ckpt.contracts import Kind
from torchrl_ckpt.errors import UserError
from torchrl_ckpt.recipe.complaints import complaints
from torchrl_ckpt.recipe.composition import Composition
from torchrl_ckpt.recipe.normal_form import node_of
from torchrl_ckpt.recipe.paths import absolute_paths
from torchrl_ckpt.recipe.problems import Problem, dotted, recipe_error, unknown_key
from torchrl_ckpt.recipe.readings import fitting
from torchrl_ckpt.recipe.schema import Section
from torchrl_ckpt.recipe.shape import ANY, Shape, all_keys, fields
from torchrl_ckpt.recipe.tree import Key, Leaf, Node, Table
from torchrl_ckpt.recipe.words import toml

PluginConfig = Callable[[Kind, str], type | None]
"""The `Config` class of a plugin by kind and name; None if it has none. May raise `UserError`."""

S = TypeVar("S", bound=Section)


def validate(composition: Composition, schema: type[S], plugin_config: PluginConfig) -> S:
    """The recipe, complete: plugin options with their defaults, paths absolute.

    Raises `RecipeError` with all unknown keys and unfit values at once, and whatever
    `plugin_config` raises for a plugin that the recipe names, with the place that names it.
    """
    root = Shape(schema)
    validator = _Validator(composition, root, plugin_config)
    validator.note_unknown(composition.tree, root, ())
    data = validator.data(composition.tree, root, ())
    try:
        recipe = schema.model_validate_json(json.dumps(data), strict=True)
    except ValidationError as error:
        raise recipe_error([*validator.problems, *complaints(error, root, composition)]) from None
    if validator.problems:
        raise recipe_error(validator.problems)
    return recipe


class _Validator:
    """Walks the tree along the schema, makes plain data of it and notes what does not fit."""

    def __init__(self, composition: Composition, root: Shape, plugin_config: PluginConfig) -> None:
        assert root.section
        self._composition = composition
        self._valid = [key for key, _ in all_keys(root.section)]
        self._plugin_config = plugin_config
        self.problems: list[Problem] = []

    def note_unknown(self, table: Table, shape: Shape, key: Key, why: str = "") -> None:
        """Note the keys that `shape` does not have, in sections that are off as well.

        `why` goes with each note.
        """
        for name, node in _in_order(table, shape):
            child, path = shape.child(name), (*key, name)
            if child is None:
                self.problems.append(unknown_key(path, node.origin, self._valid, why=why))
            elif isinstance(node, Table) and child.is_table:
                self.note_unknown(node, child, path, why)

    def data(self, table: Table, shape: Shape, key: Key) -> dict[str, Any]:
        """What the table says of the keys that `shape` has."""
        data = {}
        for name, node in _in_order(table, shape):
            child = shape.child(name)
            if child and not _is_off(node, child):
                data[name] = self._value(node, child, (*key, name))
            elif child and child.optional:
                data[name] = None
        return data

    def _value(self, node: Node, shape: Shape, key: Key) -> Any:
        if isinstance(node, Leaf) and shape.is_table:  # an option, now that its plugin is known
            node = node_of(node.value, shape, node.origin)
        if isinstance(node, Leaf):
            return self._leaf(node, shape, key)
        if shape.kind:
            return self._plugin(node, shape.kind, key)
        return self.data(node, shape if shape.is_table else ANY, key)

    def _leaf(self, leaf: Leaf, shape: Shape, key: Key) -> Any:
        value = to_jsonable_python(fitting(leaf, shape))
        if leaf.origin.base is not None:
            value = absolute_paths(value, shape, leaf.origin.base)
        try:
            json.dumps(value, allow_nan=False)
        except ValueError:
            text = f"`{dotted(key)}` is {toml(value)}; expected finite numbers"
            self.problems.append(Problem(key, text, leaf.origin))
        return value

    def _plugin(self, table: Table, kind: Kind, key: Key) -> dict[str, Any]:
        """The table of a plugin, its options as its `Config` resolves them."""
        named = table.entries.get("type")
        name = self._leaf(named, _NAME, key) if isinstance(named, Leaf) else None
        if named is None or not isinstance(name, str):
            return {} if named is None else {"type": name}
        try:
            config = self._plugin_config(kind, name) or _NoOptions
        except UserError as error:
            raise type(error)(f"`{dotted(key)}.type` ({named.origin}): {error}") from error
        self._valid += [(*key, option) for option in fields(config)]
        given = replace(table, entries={n: v for n, v in table.entries.items() if n != "type"})
        self.note_unknown(given, Shape(config), key, f", which plugin `{name}` does not have")
        options = self.data(given, Shape(config), key)
        adapter: TypeAdapter[Any] = TypeAdapter(config)
        try:
            resolved = adapter.validate_json(json.dumps(options), strict=True)
        except ValidationError as error:
            self.problems += complaints(error, Shape(config), self._composition, key)
            return {"type": name}
        return {"type": name, **adapter.dump_python(resolved, mode="json", by_alias=True)}


def _in_order(table: Table, shape: Shape) -> list[tuple[str, Node]]:
    """The entries in the schema's order, which has the shared keys before the sections."""
    order = list(fields(shape.section)) if shape.section else []
    known = [(name, table.entries[name]) for name in order if name in table.entries]
    return known + [entry for entry in table.entries.items() if entry[0] not in order]


class _NoOptions(BaseModel):
    """The `Config` of a plugin that has none."""


_NAME = Shape(str)


def _is_off(node: Node, shape: Shape) -> bool:
    """Whether the table is switched off, or may be off and nothing switched it on."""
    return isinstance(node, Table) and (
        node.switch is False or (node.switch is None and shape.optional)
    )
