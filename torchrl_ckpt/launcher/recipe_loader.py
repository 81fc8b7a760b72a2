"""Loads the recipe of a command line, validates it, and checks the plugins that it names."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from torchrl_ckpt.config.rl_recipe import RlRecipe
from torchrl_ckpt.config.section import Section
from torchrl_ckpt.config.settings import named_plugins
from torchrl_ckpt.plugin_api.errors import RecipeError
from torchrl_ckpt.recipe.compose import Composition, compose, root_files
from torchrl_ckpt.recipe.show_config import show_config
from torchrl_ckpt.recipe.validate import validate
from torchrl_ckpt.registry.loading import config_class, load_plugin
from torchrl_ckpt.run.resolved import SCHEMAS

_SHARED_OPTIONS = ("max_steps", "output_dir", "ckpt")


@dataclass(frozen=True)
class LoadedRecipe:
    """A recipe, and a line for each of its values that says where it came from."""

    recipe: Section
    origins: list[str]


def load_recipe(command: str, argv: Sequence[str], *, files: Sequence[Path] = ()) -> LoadedRecipe:
    """Load and validate the recipe of `command`, and load the plugins that it names.

    Raises `RecipeError`, or the error of a plugin, before anything else has happened.
    """
    schema = SCHEMAS[command]
    # A run is named after its recipe file, or after the command if there is none.
    name_sources = [*files, *root_files(argv, schema), Path(command)]
    defaults = default_values(name_sources[0].stem)
    composition = compose(argv, schema, files=files, defaults=defaults)
    _refuse_other_kind(command, composition)
    recipe = validate(composition, schema, config_class)
    for kind, plugin in named_plugins(recipe):
        load_plugin(kind, plugin)
    if isinstance(recipe, RlRecipe):
        _check_agreement(recipe)
    return LoadedRecipe(recipe, show_config(composition, recipe))


def default_values(name: str) -> dict[str, str]:
    """Return the defaults that depend on the run's `name`: its directory."""
    return {"output_dir": f"outputs/{name}"}


def _refuse_other_kind(command: str, composition: Composition) -> None:
    """Raise `RecipeError` for a recipe of `rl` that is given to `sft`, and the reverse."""
    given = _given_sections(composition)
    if command == "sft" and given & {"trainer", "orchestrator"}:
        raise RecipeError(
            "this is a recipe for reinforcement learning (it has [trainer] or [orchestrator]): "
            "start it with `rl` or `torchrl-ckpt run`"
        )
    if command == "rl" and "data" in given:
        raise RecipeError(
            "this is a recipe for fine-tuning (it has [data]): start it with `sft` or "
            "`torchrl-ckpt run`"
        )


def _given_sections(composition: Composition) -> set[str]:
    """The keys at the root that a file or a flag gives, sections among them."""
    return {name for name, node in composition.tree.entries.items() if node.origin.is_given}


def detect_command(files: Sequence[Path]) -> str:
    """Return `rl` or `sft`, whichever the recipe's sections belong to.

    Raises `RecipeError` if they belong to neither.
    """
    given = _given_sections(compose([], RlRecipe, files=files))
    if given & {"trainer", "orchestrator"}:
        return "rl"
    if "data" in given:
        return "sft"
    shown = ", ".join(map(str, files))
    raise RecipeError(
        f"{shown} is neither a recipe for reinforcement learning (it has no [trainer] and "
        "[orchestrator]) nor one for fine-tuning (it has no [data])"
    )


def _check_agreement(recipe: RlRecipe) -> None:
    for name in _SHARED_OPTIONS:
        trainer, orchestrator = getattr(recipe.trainer, name), getattr(recipe.orchestrator, name)
        if trainer != orchestrator:
            raise RecipeError(
                f"trainer.{name} is {trainer!r}, but orchestrator.{name} is {orchestrator!r}; they "
                f"must be equal. Give `{name}` once, at the root (`--{name.replace('_', '-')}`)"
            )
