"""Writes recipes and resolves them, with the toy plugins in place of installed ones."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.support.toy_plugins import plugin_config
from torchrl_ckpt.config.section import Section
from torchrl_ckpt.plugin_api.errors import RecipeError
from torchrl_ckpt.recipe.compose import Composition, compose
from torchrl_ckpt.recipe.show_config import show_config
from torchrl_ckpt.recipe.validate import validate


class Recipes:
    """Writes recipe files below the working directory and resolves them."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def write(self, **files: str) -> None:
        """Write `name="text"` to `name.toml`; `__` in a name stands for a directory's `/`."""
        for name, text in files.items():
            path = self.directory / f"{name.replace('__', '/')}.toml"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)

    def compose(
        self, schema: type[Section], argv: str | Sequence[str] = "", **defaults: Any
    ) -> Composition:
        arguments = argv.split() if isinstance(argv, str) else argv
        return compose(arguments, schema, defaults=defaults)

    def resolve(self, schema: type[Any], argv: str | Sequence[str] = "", **defaults: Any) -> Any:
        return validate(self.compose(schema, argv, **defaults), schema, plugin_config)

    def show(self, schema: type[Any], argv: str = "", **defaults: Any) -> list[str]:
        composition = self.compose(schema, argv, **defaults)
        return show_config(composition, validate(composition, schema, plugin_config))

    def error(self, schema: type[Any], argv: str | Sequence[str] = "", **defaults: Any) -> str:
        with pytest.raises(RecipeError) as caught:
            self.resolve(schema, argv, **defaults)
        return str(caught.value)
