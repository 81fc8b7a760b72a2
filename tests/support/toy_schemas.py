"""Small schemas of recipes, for tests that do not depend on the real ones."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from torchrl_ckpt.config.ckpt import CheckpointConfig
from torchrl_ckpt.config.section import (
    EnvironmentTable,
    LossTable,
    ModelTable,
    PluginTable,
    Section,
)


class Limits(Section):
    """How far it goes."""

    speed: Annotated[float, Field(gt=0)] = 1.0
    """Metres a second."""

    names: list[str] = Field(default_factory=list)
    """Who may."""

    flag: bool = False
    """Whether."""

    max_height: Annotated[int, Field(ge=1)] | None = 3
    """In metres."""


class Part(Section):
    """A part of the machine."""

    steps: int = 1
    model: ModelTable | None = None
    limits: Limits = Limits(speed=2.0)
    ckpt: CheckpointConfig | None = None
    loss: LossTable = PluginTable(type="grpo")


class Spare(Section):
    """A part that may be off."""

    steps: int = 1
    model: ModelTable
    depth: int = 0


class Machine(Section):
    """Two parts, one of them optional."""

    shared_keys: ClassVar[tuple[str, ...]] = ("steps", "model", "ckpt")

    steps: int | None = None
    model: ModelTable | None = None
    ckpt: CheckpointConfig | None = None
    part: Part = Part()
    spare: Spare | None = None


class Values(Section):
    """One key of every type."""

    text: str = ""
    maybe_text: str | None = None
    number: float = 0.0
    whole: int = 0
    yes: bool = True
    maybe_yes: bool | None = None
    no_cache: int = 0
    mode: Literal["slow", "fast"] = "slow"
    step: Annotated[int, Field(ge=1)] | Literal["latest"] | None = None
    pair: tuple[float, float] = (0.0, 1.0)
    words: list[str] = Field(default_factory=list)
    numbers: list[int] = Field(default_factory=list)
    path: Path | None = None
    paths: list[Path] = Field(default_factory=list)
    table: dict[str, int] = Field(default_factory=dict)
    limits: Limits = Limits()
    extra: Limits | None = None
    model: ModelTable | None = None
    environment: EnvironmentTable | None = None
