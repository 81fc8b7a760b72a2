"""The options of plugins that exist only in tests."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, field_validator

from torchrl_ckpt.plugin_api.errors import PluginNotFound
from torchrl_ckpt.plugin_api.plugin import Kind, PathOrName


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
    length: int = Field(default=8, alias="max_length")
    cache_dtype: str = Field(default_factory=lambda known: known["dtype"])


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
