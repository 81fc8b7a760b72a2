"""The commands that take a recipe: `torchrl-ckpt run`, `sft`, `rl`, and those for one component."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from difflib import get_close_matches
from pathlib import Path

from torchrl_ckpt.cli.dry_run import dry_run
from torchrl_ckpt.cli.exit import exit_code_of
from torchrl_ckpt.config.inference import InferenceConfig
from torchrl_ckpt.config.orchestrator import OrchestratorConfig
from torchrl_ckpt.config.rl_recipe import RlRecipe
from torchrl_ckpt.config.section import Section
from torchrl_ckpt.config.settings import plugin_tables
from torchrl_ckpt.config.sft_recipe import SftRecipe
from torchrl_ckpt.config.trainer import RlTrainerConfig
from torchrl_ckpt.launcher.recipe_loader import default_values, detect_command, load_recipe
from torchrl_ckpt.launcher.rl import run_rl
from torchrl_ckpt.launcher.sft import run_sft
from torchrl_ckpt.launcher.standalone import run_component, run_inference
from torchrl_ckpt.plugin_api.errors import RecipeError
from torchrl_ckpt.recipe.help import help_text
from torchrl_ckpt.registry.loading import require_variables
from torchrl_ckpt.run.resolved import SCHEMAS

_DESCRIPTIONS = {
    "sft": "Supervised fine-tuning.",
    "rl": "Reinforcement learning: trainer, orchestrator and, if it has a section, inference.",
    "trainer": "The trainer of a reinforcement learning job, without the other components.",
    "orchestrator": "The orchestrator of a reinforcement learning job, without the other "
    "components.",
    "inference": "An inference server, which runs until it is stopped.",
}

_MODES = ("--show-config", "--dry-run")

_RUN_HELP = """\
usage: torchrl-ckpt run RECIPE.toml [--any.key value ...]

Run a recipe: reinforcement learning if it has a section [trainer] or [orchestrator], otherwise
supervised fine-tuning. Every key of a recipe is a flag; these commands list them all, with their
meaning and their defaults:

  sft --help     for fine-tuning
  rl --help      for reinforcement learning

options:
  -h, --help     show this help message and exit
  --show-config  print every value of the recipe and where it comes from, and exit
  --dry-run      check recipe, plugins, data and checkpoint, write dry_run.json, and exit

example:
  torchrl-ckpt run recipes/sft_reverse.toml --max-steps 20 --ckpt
"""


def run(argv: Sequence[str]) -> int | None:
    """Carry out `torchrl-ckpt run RECIPE.toml [flags]` and return its exit code (None: 0)."""
    if argv[:1] == ["@"]:  # As the other commands are written.
        argv = argv[1:]
    if argv and argv[0] in ("-h", "--help"):
        print(_RUN_HELP, end="")
        return 0
    if not argv or argv[0].startswith("-"):
        found = f", but found {argv[0]!r}" if argv else ": `torchrl-ckpt run RECIPE.toml`"
        raise RecipeError(f"`torchrl-ckpt run` needs a recipe file as its first argument{found}")
    files = [Path(argv[0])]
    return _recipe_command(detect_command(files), argv[1:], files=files)


def sft() -> int:
    """`sft @ recipe.toml`: supervised fine-tuning."""
    return _main("sft")


def rl() -> int:
    """`rl --trainer @ train.toml --orchestrator @ orch.toml`: reinforcement learning."""
    return _main("rl")


def trainer() -> int:
    """`trainer @ train.toml`: the trainer of a reinforcement learning job alone."""
    return _main("trainer")


def orchestrator() -> int:
    """`orchestrator @ orch.toml`: the orchestrator alone."""
    return _main("orchestrator")


def inference() -> int:
    """`inference @ infer.toml`: the inference server alone."""
    return _main("inference")


def _main(command: str) -> int:
    return exit_code_of(lambda: _recipe_command(command, sys.argv[1:]))


def _recipe_command(command: str, argv: Sequence[str], *, files: Sequence[Path] = ()) -> int | None:
    """Resolve the recipe of `command`, and run it or only show it."""
    if "-h" in argv or "--help" in argv:
        defaults = default_values("NAME")
        text = help_text(SCHEMAS[command], command, _DESCRIPTIONS[command], defaults=defaults)
        print(text, end="")
        return None
    for word in argv:
        if (
            word.startswith("--")
            and word not in _MODES
            and (near := get_close_matches(word, _MODES))
        ):
            raise RecipeError(f"unknown option `{word}`; did you mean `{near[0]}`?")
    modes = {*_MODES} & set(argv)
    loaded = load_recipe(command, [word for word in argv if word not in modes], files=files)
    if "--show-config" in modes:
        print("\n".join(loaded.origins))
        return None
    for kind, table in plugin_tables(loaded.recipe):
        require_variables(kind, table)
    if "--dry-run" in modes:
        dry_run(command, loaded.recipe)
    else:
        _start(loaded.recipe)
    return None


def _start(recipe: Section) -> None:
    match recipe:
        case SftRecipe():
            run_sft(recipe)
        case RlRecipe():
            run_rl(recipe)
        case InferenceConfig():
            run_inference(recipe)
        case RlTrainerConfig() | OrchestratorConfig():
            run_component(recipe)
