"""From the merged tree to an instance of the schema, or to one error that tells all that is wrong."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError
from pydantic_core import to_jsonable_python

from torchrl_ckpt.contracts import Kind
from torchrl_ckpt.errors import UserError
from torchrl_ckpt.recipe.complaints import complaints
from torchrl_ckpt.recipe.paths import absolute_paths
from torchrl_ckpt.recipe.problems import Problem, dotted, raise_if_any, unknown_key
from torchrl_ckpt.recipe.schema import Section
from torchrl_ckpt.recipe.shape import ANY, Shape, all_keys, fields
from torchrl_ckpt.recipe.tree import Composition, Key, Leaf, Node, Table

PluginConfig = Callable[[Kind, str], type | None]
"""The `Config` class of a plugin by kind and name; None if it has none. May raise `UserError`."""

S = TypeVar("S", bound=Section)


def validate(composition: Composition, schema: type[S], plugin_config: PluginConfig) -> S:
    """The recipe, complete: plugin options with their defaults, paths absolute.

    Raises `RecipeError` with all unknown keys and unfit values at once, and whatever
    `plugin_config` raises for a plugin that the recipe names, with the place that names it.
    """
    validator = _Validator(schema, plugin_config)
    data = validator.table(composition.tree, Shape(schema), ())
    problems = validator.problems
    recipe = None
    try:
        recipe = schema.model_validate_json(json.dumps(data), strict=True)
    except ValidationError as error:
        problems += complaints(error, Shape(schema), composition)
    raise_if_any(problems)
    assert recipe is not None
    return recipe


class _Validator:
    """Walks the tree along the schema, makes plain data of it and notes what does not fit."""

    def __init__(self, schema: type[Section], plugin_config: PluginConfig) -> None:
        self._valid_keys = [key for key, _ in all_keys(schema)]
        self._plugin_config = plugin_config
        self.problems: list[Problem] = []

    def table(self, table: Table, shape: Shape, key: Key) -> dict[str, Any]:
        """The data of a section, or of a table whose keys are free."""
        data = {}
        for name, node in table.entries.items():
            child, path = shape.child(name), (*key, name)
            if child is None:
                self.problems.append(unknown_key(path, node.origin, self._valid_keys))
            elif not _is_absent(node, child):
                data[name] = self._value(node, child, path)
        return data
