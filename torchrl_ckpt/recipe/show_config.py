"""`--show-config`: every setting, its value as TOML, and where it comes from."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torchrl_ckpt.config.describe import dotted, toml
from torchrl_ckpt.config.option_spec import Key
from torchrl_ckpt.config.section import PluginTable, Section
from torchrl_ckpt.config.settings import settings
from torchrl_ckpt.recipe.compose import Composition
from torchrl_ckpt.recipe.tree import DEFAULT, Table


def show_config(composition: Composition, recipe: Section) -> list[str]:
    """Return lines such as `trainer.optim.lr = 0.0003  # recipes/reverse/train.toml:7`.

    `recipe` is the result of `validate` for `composition`. A value that is off or unset is `false`.
    """
    return [
        f"{dotted(key)} = {toml(value)}  # {_origin(composition, key)}"
        for setting, _, given in settings(recipe)
        for key, value in _values(setting, given)
    ]


def _values(key: Key, value: Any) -> Iterator[tuple[Key, Any]]:
    """The values at and below `key`, those of a table one by one."""
    if isinstance(value, PluginTable):
        value = value.model_dump()
    if isinstance(value, dict) and value:
        for name, inner in value.items():
            yield from _values((*key, name), inner)
    else:
        yield key, value


def _origin(composition: Composition, key: Key) -> str:
    node = composition.node(key)
    if node is None or (isinstance(node, Table) and node.switch is None):
        return str(DEFAULT)
    return str(node.origin)
