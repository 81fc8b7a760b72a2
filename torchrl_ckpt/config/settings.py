"""A validated recipe as plain data and back, and the settings in it, one by one."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, TypeVar

from pydantic import ValidationError

from torchrl_ckpt.config.describe import dotted
from torchrl_ckpt.config.option_spec import Key, OptionSpec, fields
from torchrl_ckpt.config.section import PluginTable, Section
from torchrl_ckpt.plugin_api.errors import RecipeError
from torchrl_ckpt.plugin_api.plugin import Json, Kind

S = TypeVar("S", bound=Section)


def to_json(recipe: Section) -> dict[str, Json]:
    """The whole recipe for `resolved.json`."""
    return recipe.model_dump(mode="json")


def from_json(schema: type[S], data: Mapping[str, Json]) -> S:
    """What `to_json` was given. Needs no plugin; raises `RecipeError` if `data` does not fit."""
    try:
        return schema.model_validate(data)
    except ValidationError as error:
        raise RecipeError(
            f"a resolved recipe that does not fit this version of torchrl-ckpt: {error}"
        ) from None


def settings(recipe: Section, above: Key = ()) -> Iterator[tuple[Key, OptionSpec, Any]]:
    """Key, shape and value of everything in the recipe but the sections that are on."""
    for name, shape in fields(type(recipe)).items():
        value = getattr(recipe, name)
        if isinstance(value, Section):
            yield from settings(value, (*above, name))
        else:
            yield (*above, name), shape, value


def named_plugins(recipe: Section) -> list[tuple[Kind, str, str]]:
    """Kind, name and dotted key of each plugin that the recipe names."""
    return [
        (shape.kind, value.type, dotted(key))
        for key, shape, value in settings(recipe)
        if shape.kind and isinstance(value, PluginTable)
    ]
