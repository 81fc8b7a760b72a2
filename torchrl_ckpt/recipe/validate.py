"""Turns the merged tree into an instance of the schema, or into one error with every issue."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args, get_origin

from pydantic import BaseModel, TypeAdapter, ValidationError
from pydantic_core import to_jsonable_python

from torchrl_ckpt.config.describe import dotted, flag, toml
from torchrl_ckpt.config.option_spec import ANY, Key, OptionSpec, all_keys, fields
from torchrl_ckpt.config.section import Section
from torchrl_ckpt.config.variables import (
    LITERAL,
    PREFIX,
    PREFIXED_ONLY,
    map_secrets,
    names_variable,
    referenced_variable,
    with_references,
)
from torchrl_ckpt.plugin_api.errors import RecipeError, UserError
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
from torchrl_ckpt.recipe.tree import Leaf, Node, Origin, Table

PluginConfig = Callable[[Kind, str], type | None]
"""Returns the `Config` of a plugin by kind and name; None if it has none. May raise `UserError`."""

S = TypeVar("S", bound=Section)


def validate(composition: Composition, schema: type[S], plugin_config: PluginConfig) -> S:
    """Return the complete recipe: plugin options with their defaults, paths absolute.

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
        validator.issues += unfit_values(error, root, composition)
        raise validator.error() from None
    if validator.issues:
        raise validator.error()
    return recipe


class _Validator:
    """Walks the tree along the schema, makes plain data of it and collects issues."""

    def __init__(
        self, composition: Composition, root: OptionSpec, plugin_config: PluginConfig
    ) -> None:
        assert root.section
        self._composition = composition
        self._valid = [key for key, _ in all_keys(root.section)]
        self._plugin_config = plugin_config
        self.issues: list[ConfigIssue] = []
        self._shown: dict[Origin, Origin] = {}

    def error(self) -> RecipeError:
        """One error for all issues, which shows no secret."""
        return recipe_error(
            replace(issue, origin=issue.origin and self._shown.get(issue.origin, issue.origin))
            for issue in self.issues
        )

    def note_unknown(self, table: Table, spec: OptionSpec, key: Key, why: str = "") -> None:
        """Add an issue for each key that `spec` does not have, also in sections that are off.

        `why` is added to each message.
        """
        for name, node in _in_order(table, spec):
            child, path = spec.child(name), (*key, name)
            if child is None:
                self.issues.append(unknown_key(path, node.origin, self._valid, why=why))
            elif isinstance(node, Table) and child.is_table:
                self.note_unknown(node, child, path, why)

    def data(self, table: Table, spec: OptionSpec, key: Key) -> dict[str, Any]:
        """The values of the table as plain data, without keys that `spec` does not have."""
        data = {}
        for name, node in _in_order(table, spec):
            child = spec.child(name)
            if child and not _is_off(node, child):
                data[name] = self._value(node, child, (*key, name))
            elif child and child.optional:
                data[name] = None
        return data

    def _value(self, node: Node, spec: OptionSpec, key: Key) -> Any:
        if isinstance(node, Leaf) and spec.is_table:  # an option, now that its plugin is known
            node = node_of(node.value, spec, node.origin)
        if isinstance(node, Leaf):
            return self._leaf(node, spec, key)
        if spec.kind:
            return self._plugin(node, spec.kind, key)
        if spec.is_table:
            return self.data(node, spec, key)
        # One of several forms of table, known by its values only.
        return self._checked_secrets(self.data(node, ANY, key), _least_trusted(node), spec, key)

    def _leaf(self, leaf: Leaf, spec: OptionSpec, key: Key) -> Any:
        value = to_jsonable_python(fitting(leaf, spec))
        value = self._checked_secrets(value, leaf.origin, spec, key)
        if leaf.origin.base is not None:
            value = absolute_paths(value, spec, leaf.origin.base)
        try:
            json.dumps(value, allow_nan=False)
        except ValueError:
            text = f"`{dotted(key)}` is {toml(value)}; expected finite numbers"
            self.issues.append(ConfigIssue(key, text, leaf.origin))
        return value

    def _checked_secrets(self, value: Any, origin: Origin, spec: OptionSpec, key: Key) -> Any:
        """`value`, with issues for secrets in it, which are not shown, and for variables that it
        may not name."""

        def checked(secret: Any) -> str:
            variable = referenced_variable(secret)
            if variable is None:
                if origin.flag:  # The flag as it was typed shows the secret.
                    self._shown[origin] = replace(origin, location=origin.flag)
                self.issues.append(ConfigIssue(key, f"`{dotted(key)}` {LITERAL}", origin))
                return _NO_SECRET
            self._note_variable(variable, f"{flag(key)} {secret}", origin, key)
            return str(secret)

        if names_variable(spec) and isinstance(value, str):
            self._note_variable(value, f"{flag(key)} {value}", origin, key)
        return map_secrets(value, spec, checked)

    def _note_variable(self, variable: str, remedy: str, origin: Origin, key: Key) -> None:
        """Add an issue for a variable without the prefix, unless a flag names it."""
        if not (variable.startswith(PREFIX) or origin.flag):
            text = f"`{dotted(key)}` is {variable}, but {PREFIXED_ONLY}. Rename it, or give "
            self.issues.append(ConfigIssue(key, f"{text}`{remedy}` on the command line", origin))

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
            self.issues += unfit_values(error, OptionSpec(config), self._composition, key)
            return {"type": name}
        as_json = adapter.dump_python(resolved, mode="json", by_alias=True)
        return {
            "type": name,
            **with_references(as_json, adapter.dump_python(resolved, by_alias=True)),
        }


def _in_order(table: Table, spec: OptionSpec) -> list[tuple[str, Node]]:
    """The entries in the schema's order, in which shared keys come before sections."""
    order = list(fields(spec.section)) if spec.section else []
    known = [(name, table.entries[name]) for name in order if name in table.entries]
    return known + [entry for entry in table.entries.items() if entry[0] not in order]


class _NoOptions(BaseModel):
    """The `Config` of a plugin that has none."""


_NAME = OptionSpec(str)

_NO_SECRET = f"env:{PREFIX}"


def _least_trusted(node: Node) -> Origin:
    """The origin of a value in `node` that no flag gives, if there is one."""
    if isinstance(node, Leaf):
        return node.origin
    inside = [_least_trusted(entry) for entry in node.entries.values()]
    return next((origin for origin in inside if not origin.flag), node.origin)


def _is_off(node: Node, spec: OptionSpec) -> bool:
    """Whether the table is switched off, or can be off and nothing switched it on."""
    return isinstance(node, Table) and (
        node.switch is False or (node.switch is None and spec.optional)
    )


_PATH_STARTS = ("./", "../", "/")


def absolute_paths(value: Any, spec: OptionSpec, base: Path) -> Any:
    """Return `value` with each path in it, as `spec` tells them apart, taken relative to `base`.

    A string that may be a path or a name is a path if it starts like one or if the path exists.
    """
    if isinstance(value, str):
        return _absolute(value, base) if _is_path(value, spec, base) else value
    if isinstance(value, list) and spec.items:
        each = spec.items if len(spec.items) > 1 else spec.items * len(value)
        return [absolute_paths(item, of, base) for item, of in zip(value, each, strict=False)]
    if isinstance(value, dict):
        return {
            name: absolute_paths(inner, spec.child(name) or ANY, base)
            for name, inner in value.items()
        }
    return value


def _is_path(value: str, spec: OptionSpec, base: Path) -> bool:
    if any(get_origin(arm.core) is Literal and value in get_args(arm.core) for arm in spec.arms):
        return False
    if any(arm.core is Path for arm in spec.arms):
        return True
    marks = [*spec.metadata, *(mark for arm in spec.arms for mark in arm.metadata)]
    if not value or not any(isinstance(mark, MaybePath) for mark in marks):
        return False
    return value.startswith(_PATH_STARTS) or (base / value).exists()


def _absolute(value: str, base: Path) -> str:
    return os.path.abspath(base / value)
