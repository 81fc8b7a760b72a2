"""`resolved.json`: what a job's processes read instead of flags.

It holds the command, the attempt, the recipe with every value in place, and the plugins in use.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from torchrl_ckpt.config.inference import InferenceConfig
from torchrl_ckpt.config.orchestrator import OrchestratorConfig
from torchrl_ckpt.config.rl_recipe import RlRecipe
from torchrl_ckpt.config.section import Section
from torchrl_ckpt.config.settings import from_json, named_plugins, to_json
from torchrl_ckpt.config.sft_recipe import SftRecipe
from torchrl_ckpt.config.trainer import RlTrainerConfig
from torchrl_ckpt.plugin_api.durable_files import read_json, write_json
from torchrl_ckpt.plugin_api.errors import DataError
from torchrl_ckpt.plugin_api.plugin import Json
from torchrl_ckpt.plugin_api.untrusted_files import read_bounded_json
from torchrl_ckpt.registry.lookup import find_plugin
from torchrl_ckpt.run.attempt import Attempt

_MAX_BYTES = 16 * 1024 * 1024

SCHEMAS: dict[str, type[Section]] = {
    "sft": SftRecipe,
    "rl": RlRecipe,
    "trainer": RlTrainerConfig,
    "orchestrator": OrchestratorConfig,
    "inference": InferenceConfig,
}
"""The schema of each command's recipe."""


def write_resolved(path: Path, command: str, recipe: Section, attempt: Attempt | None) -> None:
    """Write what the processes of `command` need. `attempt` is None for a server alone."""
    write_json(
        path,
        {
            "command": command,
            "attempt": None if attempt is None else attempt.model_dump(mode="json"),
            "recipe": to_json(recipe),
            "plugins": _plugins(recipe),
        },
    )


def read_recipe(path: Path) -> Section:
    """The whole recipe of the command."""
    content = read_json(path)
    return from_json(SCHEMAS[content["command"]], content["recipe"])


def section_of(recipe: Section, component: str) -> Section:
    """The part of the recipe that is for `component`."""
    return getattr(recipe, component) if isinstance(recipe, RlRecipe) else recipe


def read_attempt(path: Path) -> Attempt | None:
    """The attempt that the launcher has settled; None for a server alone. Raises `DataError`."""
    try:
        attempt = read_bounded_json(path, _MAX_BYTES).get("attempt")  # Once there was none.
        return None if attempt is None else Attempt.model_validate(attempt)
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}") from None
    except (ValueError, AttributeError) as error:
        raise DataError(
            f"{path} is not the record of a run, or is one of another version of torchrl-ckpt: "
            f"{str(error)[:500]}"
        ) from None


def read_run_metadata(path: Path) -> Json:
    """Everything in the file as JSON, for the manifests of checkpoints."""
    return read_json(path)


def recipe_sections(command: str, recipe: Mapping[str, Json]) -> dict[str, Json]:
    """The sections of a resolved recipe by component, whichever command it is for.

    A recipe for reinforcement learning has a table for each; any other is a section itself.
    """
    if command == "rl":
        return {name: recipe[name] for name in ("trainer", "orchestrator")}
    return {"trainer" if command == "sft" else command: recipe}


def _plugins(recipe: Section) -> Json:
    """Name, distribution and version of every plugin that the recipe names, by kind."""
    found = {kind: find_plugin(kind, name) for kind, name in named_plugins(recipe)}
    return {
        kind: {"name": plugin.name, "distribution": plugin.distribution, "version": plugin.version}
        for kind, plugin in found.items()
    }
