"""`resolved.json`: a job's recipe with every value in place, from the runner to its processes."""

from __future__ import annotations

from pathlib import Path

from torchrl_ckpt.contracts import Json
from torchrl_ckpt.durable import read_json, write_json
from torchrl_ckpt.recipe import from_json, to_json
from torchrl_ckpt.recipe.schema import (
    Inference,
    Orchestrator,
    RlRecipe,
    RlTrainer,
    Section,
    SftRecipe,
)

SCHEMAS: dict[str, type[Section]] = {
    "sft": SftRecipe,
    "rl": RlRecipe,
    "trainer": RlTrainer,
    "orchestrator": Orchestrator,
    "inference": Inference,
}
"""What each command's recipe is checked against."""


def write_resolved(path: Path, command: str, recipe: Section) -> None:
    write_json(path, {"command": command, "recipe": to_json(recipe)})


def read_section(path: Path, component: str) -> Section:
    """The part of the recipe that is for `component`."""
    content = read_json(path)
    recipe = from_json(SCHEMAS[content["command"]], content["recipe"])
    return getattr(recipe, component) if isinstance(recipe, RlRecipe) else recipe


def read_recipe(path: Path) -> Json:
    """The whole recipe as JSON, for the records of a checkpoint."""
    return read_json(path)["recipe"]
