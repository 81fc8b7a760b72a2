"""Turns the merged tree into an instance of the schema, or into one error that tells all."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args, get_origin

from pydantic import BaseModel, TypeAdapter, ValidationError
from pydantic_core import to_jsonable_python

from torchrl_ckpt.config.describe import dotted, toml
from torchrl_ckpt.config.option_spec import ANY, Key, OptionSpec, all_keys, fields
from torchrl_ckpt.config.section import Section
from torchrl_ckpt.plugin_api.errors import UserError
from torchrl_ckpt.plugin_api.plugin import Kind, MaybePath
from torchrl_ckpt.recipe.compose import Composition
from torchrl_ckpt.recipe.config_issues import (
    ConfigIssue,
    recipe_error,
    unfit_values,
    unknown_key,
)
from torchrl_ckpt.recipe.flags import fitting
from torchrl_ckpt.recipe.normalize import node_of
from torchrl_ckpt.recipe.tree import Leaf, Node, Table

PluginConfig = Callable[[Kind, str], type | None]
"""The `Config` class of a plugin by kind and name; None if it has none. May raise `UserError`."""

S = TypeVar("S", bound=Section)


def validate(composition: Composition, schema: type[S], plugin_config: PluginConfig) -> S:
    """The recipe, complete: plugin options with their defaults, paths absolute.

    Raises `RecipeError` with all unknown keys and unfit values at once, and whatever
    `plugin_config` raises for a plugin that the recipe names, with the place that names it.
    """
    root = OptionSpec(schema)
    validator = _Validator(composition, root, plugin_config)
    validator.note_unknown(composition.tree, root, ())
    data = validator.data(composition.tree, root, ())
    try:
        recipe = schema.model_validate_json(json.dumps(data), strict=True)
    except ValidationError as error:
        raise recipe_error([*validator.problems, *unfit_values(error, root, composition)]) from None
    if validator.problems:
        raise recipe_error(validator.problems)
    return recipe


class _Validator:
    """Walks the tree along the schema, makes plain data of it and notes what does not fit."""

    def __init__(
        self, composition: Composition, root: OptionSpec, plugin_config: PluginConfig
    ) -> None:
        assert root.section
        self._composition = composition
        self._valid = [key for key, _ in all_keys(root.section)]
        self._plugin_config = plugin_config
        self.problems: list[ConfigIssue] = []

    def note_unknown(self, table: Table, shape: OptionSpec, key: Key, why: str = "") -> None:
        """Note the keys that `shape` does not have, in sections that are off as well.

        `why` goes with each note.
        """
        for name, node in _in_order(table, shape):
            child, path = shape.child(name), (*key, name)
            if child is None:
                self.problems.append(unknown_key(path, node.origin, self._valid, why=why))
            elif isinstance(node, Table) and child.is_table:
                self.note_unknown(node, child, path, why)

    def data(self, table: Table, shape: OptionSpec, key: Key) -> dict[str, Any]:
        """What the table says of the keys that `shape` has."""
        data = {}
        for name, node in _in_order(table, shape):
            child = shape.child(name)
            if child and not _is_off(node, child):
                data[name] = self._value(node, child, (*key, name))
            elif child and child.optional:
                data[name] = None
        return data

    def _value(self, node: Node, shape: OptionSpec, key: Key) -> Any:
        if isinstance(node, Leaf) and shape.is_table:  # an option, now that its plugin is known
            node = node_of(node.value, shape, node.origin)
        if isinstance(node, Leaf):
            return self._leaf(node, shape, key)
        if shape.kind:
            return self._plugin(node, shape.kind, key)
        return self.data(node, shape if shape.is_table else ANY, key)

    def _leaf(self, leaf: Leaf, shape: OptionSpec, key: Key) -> Any:
        value = to_jsonable_python(fitting(leaf, shape))
        if leaf.origin.base is not None:
            value = absolute_paths(value, shape, leaf.origin.base)
        try:
            json.dumps(value, allow_nan=False)
        except ValueError:
            text = f"`{dotted(key)}` is {toml(value)}; expected finite numbers"
            self.problems.append(ConfigIssue(key, text, leaf.origin))
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
        self.note_unknown(given, OptionSpec(config), key, f", which plugin `{name}` does not have")
        options = self.data(given, OptionSpec(config), key)
        adapter: TypeAdapter[Any] = TypeAdapter(config)
        try:
            resolved = adapter.validate_json(json.dumps(options), strict=True)
        except ValidationError as error:
            self.problems += unfit_values(error, OptionSpec(config), self._composition, key)
            return {"type": name}
        return {"type": name, **adapter.dump_python(resolved, mode="json", by_alias=True)}


def _in_order(table: Table, shape: OptionSpec) -> list[tuple[str, Node]]:
    """The entries in the schema's order, which has the shared keys before the sections."""
    order = list(fields(shape.section)) if shape.section else []
    known = [(name, table.entries[name]) for name in order if name in table.entries]
    return known + [entry for entry in table.entries.items() if entry[0] not in order]


class _NoOptions(BaseModel):
    """The `Config` of a plugin that has none."""


_NAME = OptionSpec(str)


def _is_off(node: Node, shape: OptionSpec) -> bool:
    """Whether the table is switched off, or may be off and nothing switched it on."""
    return isinstance(node, Table) and (
        node.switch is False or (node.switch is None and shape.optional)
    )


_SURELY_PATHS = ("./", "../", "/")


def absolute_paths(value: Any, shape: OptionSpec, base: Path) -> Any:
    """`value` with each path in it, as `shape` tells them apart, taken relative to `base`.

    A string that may be a path or a name is a path if it starts like one or if there is one.
    """
    if isinstance(value, str):
        return _absolute(value, base) if _is_path(value, shape, base) else value
    if isinstance(value, list) and shape.items:
        each = shape.items if len(shape.items) > 1 else shape.items * len(value)
        return [absolute_paths(item, of, base) for item, of in zip(value, each, strict=False)]
    if isinstance(value, dict):
        return {
            name: absolute_paths(inner, shape.child(name) or ANY, base)
            for name, inner in value.items()
        }
    return value


def _is_path(value: str, shape: OptionSpec, base: Path) -> bool:
    if any(get_origin(arm.core) is Literal and value in get_args(arm.core) for arm in shape.arms):
        return False
    if any(arm.core is Path for arm in shape.arms):
        return True
    marks = [*shape.metadata, *(mark for arm in shape.arms for mark in arm.metadata)]
    if not value or not any(isinstance(mark, MaybePath) for mark in marks):
        return False
    return value.startswith(_SURELY_PATHS) or (base / value).exists()


def _absolute(value: str, base: Path) -> str:
    return os.path.abspath(base / value)
