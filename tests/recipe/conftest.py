"""Recipes written into a temporary working directory, and plugins that exist only here."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel, ConfigDict, Field, field_validator

from torchrl_ckpt.contracts import Kind, PathOrName
from torchrl_ckpt.errors import PluginNotFound, RecipeError
from torchrl_ckpt.recipe import Composition, compose, show_config, validate
from torchrl_ckpt.recipe.schema import Section


class ModelConfig(BaseModel):
    name: PathOrName | None = None
    attention: str = "sdpa"
    files: list[Path] = []
    config: dict[str, Any] = {}
    dropout: float | None = Field(default=0.5, ge=0)
    memory: int = 1

    @field_validator("memory", mode="before")
    @classmethod
    def _gigabytes(cls, value: Any) -> Any:
        return int(value.removesuffix("GB")) if isinstance(value, str) else value

    @field_validator("attention")
    @classmethod
    def _no_magic(cls, value: str) -> str:
        if value == "magic":
            raise ValueError("there is no magic")
        return value


@dataclass
class EnvironmentConfig:
    size: int
    words: list[str] = field(default_factory=list)
    shuffle: bool = True


class EngineConfig(BaseModel):
    model_config = ConfigDict(extra="allow")

    dtype: str = "bfloat16"


CONFIGS: dict[tuple[Kind, str], type | None] = {
    ("models", "toy"): ModelConfig,
    ("models", "other"): None,
    ("environments", "words"): EnvironmentConfig,
    ("engines", "transformers"): EngineConfig,
    ("losses", "grpo"): None,
    ("losses", "cross_entropy"): None,
    ("losses", "custom"): None,
    ("checkpoint_backends", "dcp"): None,
}


def plugin_config(kind: Kind, name: str) -> type | None:
    if (kind, name) not in CONFIGS:
        raise PluginNotFound(f"no plugin `{name}` among the {kind}")
    return CONFIGS[kind, name]


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
        words = argv.split() if isinstance(argv, str) else argv
        return compose(words, schema, defaults=defaults)

    def resolve(self, schema: type[Any], argv: str | Sequence[str] = "", **defaults: Any) -> Any:
        return validate(self.compose(schema, argv, **defaults), schema, plugin_config)

    def show(self, schema: type[Any], argv: str = "", **defaults: Any) -> list[str]:
        composition = self.compose(schema, argv, **defaults)
        return show_config(composition, validate(composition, schema, plugin_config))

    def error(self, schema: type[Any], argv: str | Sequence[str] = "", **defaults: Any) -> str:
        with pytest.raises(RecipeError) as caught:
            self.resolve(schema, argv, **defaults)
        return str(caught.value)


@pytest.fixture
def recipes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Recipes:
    monkeypatch.chdir(tmp_path)
    return Recipes(tmp_path)


@pytest.fixture
def resolve(recipes: Recipes) -> Callable[..., Any]:
    return recipes.resolve
