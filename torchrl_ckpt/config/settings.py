"""A validated recipe as plain data and back, and its settings one by one."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, TypeVar

from pydantic import ValidationError

from torchrl_ckpt.config.option_spec import Key, OptionSpec, fields
from torchrl_ckpt.config.section import PluginTable, Section
from torchrl_ckpt.plugin_api.errors import RecipeError
from torchrl_ckpt.plugin_api.plugin import Json, Kind

S = TypeVar("S", bound=Section)


def to_json(recipe: Section) -> dict[str, Json]:
    """The whole recipe as JSON, for `resolved.json`."""
    return recipe.model_dump(mode="json")


def from_json(schema: type[S], data: Mapping[str, Json]) -> S:
    """The recipe that `to_json` was given, read without any plugin.

    Raises `RecipeError` if `data` does not fit the schema.
    """
    try:
        return schema.model_validate(data)
    except ValidationError as error:
        raise RecipeError(
            f"a resolved recipe that does not fit this version of torchrl-ckpt: {error}"
        ) from None


def settings(recipe: Section, above: Key = ()) -> Iterator[tuple[Key, OptionSpec, Any]]:
    """Key, spec and value of every option; of a section that is off, its own key with None."""
    for name, spec in fields(type(recipe)).items():
        value = getattr(recipe, name)
        if isinstance(value, Section):
            yield from settings(value, (*above, name))
        else:
            yield (*above, name), spec, value


def plugin_tables(recipe: Section) -> list[tuple[Kind, PluginTable]]:
    """Kind and table of each plugin that the recipe names, in the order of its keys."""
    return [
        (spec.kind, value)
        for _, spec, value in settings(recipe)
        if spec.kind and isinstance(value, PluginTable)
    ]


def named_plugins(recipe: Section) -> list[tuple[Kind, str]]:
    """Kind and name of each plugin that the recipe names, in the order of its keys."""
    return [(kind, table.type) for kind, table in plugin_tables(recipe)]
