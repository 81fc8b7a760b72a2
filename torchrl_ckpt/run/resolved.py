"""`resolved.json`: a job's recipe with every value in place, from the runner to its processes."""

from __future__ import annotations

from pathlib import Path

from torchrl_ckpt import registry
from torchrl_ckpt.config.inference import InferenceConfig
from torchrl_ckpt.config.orchestrator import OrchestratorConfig
from torchrl_ckpt.config.rl_recipe import RlRecipe
from torchrl_ckpt.config.section import Section
from torchrl_ckpt.config.settings import from_json, named_plugins, to_json
from torchrl_ckpt.config.sft_recipe import SftRecipe
from torchrl_ckpt.config.trainer import RlTrainerConfig
from torchrl_ckpt.plugin_api.durable_files import read_json, write_json
from torchrl_ckpt.plugin_api.plugin import Json

SCHEMAS: dict[str, type[Section]] = {
    "sft": SftRecipe,
    "rl": RlRecipe,
    "trainer": RlTrainerConfig,
    "orchestrator": OrchestratorConfig,
    "inference": InferenceConfig,
}
"""What each command's recipe is checked against."""


def write_resolved(path: Path, command: str, recipe: Section) -> None:
    content = {"command": command, "recipe": to_json(recipe), "plugins": _plugins(recipe)}
    write_json(path, content)


def read_section(path: Path, component: str) -> Section:
    """The part of the recipe that is for `component`."""
    content = read_json(path)
    recipe = from_json(SCHEMAS[content["command"]], content["recipe"])
    return getattr(recipe, component) if isinstance(recipe, RlRecipe) else recipe


def read_about(path: Path) -> Json:
    """The whole recipe and its plugins as JSON, for the records of a checkpoint."""
    content = read_json(path)
    return {name: content[name] for name in ("recipe", "plugins")}


def _plugins(recipe: Section) -> Json:
    """Name, distribution and version of every plugin that has a hand in the job, by kind."""
    found = {kind: registry.find(kind, name) for kind, name, _ in named_plugins(recipe)}
    return {
        kind: {"name": plugin.name, "distribution": plugin.distribution, "version": plugin.version}
        for kind, plugin in found.items()
    }
