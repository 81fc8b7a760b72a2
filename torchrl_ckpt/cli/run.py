"""The commands that take a recipe: `sft`, `rl`, `trainer`, `orchestrator` and `inference`."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from torchrl_ckpt.cli.exit import exit_code_of
from torchrl_ckpt.config.inference import InferenceConfig
from torchrl_ckpt.config.orchestrator import OrchestratorConfig
from torchrl_ckpt.config.rl_recipe import RlRecipe
from torchrl_ckpt.config.section import Section
from torchrl_ckpt.config.sft_recipe import SftRecipe
from torchrl_ckpt.config.trainer import RlTrainerConfig
from torchrl_ckpt.launcher.recipe_loader import default_values, load_recipe
from torchrl_ckpt.launcher.start import record_recipe
from torchrl_ckpt.recipe.help import help_text
from torchrl_ckpt.run.resolved import SCHEMAS

_ABOUT = {
    "sft": "Supervised fine-tuning.",
    "rl": "Reinforcement learning: trainer, orchestrator and, with its section, inference.",
    "trainer": "The trainer of a reinforcement learning job alone.",
    "orchestrator": "The orchestrator of a reinforcement learning job alone.",
    "inference": "The inference server alone. It stays up until it is stopped.",
}


def sft() -> None:
    """`sft @ recipe.toml`: supervised fine-tuning."""
    _main("sft")


def rl() -> None:
    """`rl --trainer @ train.toml --orchestrator @ orch.toml`: reinforcement learning."""
    _main("rl")


def trainer() -> None:
    """`trainer @ train.toml`: the trainer of a reinforcement learning job alone."""
    _main("trainer")


def orchestrator() -> None:
    """`orchestrator @ orch.toml`: the orchestrator alone."""
    _main("orchestrator")


def inference() -> None:
    """`inference @ infer.toml`: the inference server alone."""
    _main("inference")


def recipe_command(command: str, argv: Sequence[str], *, files: Sequence[Path] = ()) -> int | None:
    """Resolve the recipe of `command` and run it, or only show it."""
    if "-h" in argv or "--help" in argv:
        defaults = default_values("NAME")
        print(help_text(SCHEMAS[command], command, _ABOUT[command], defaults=defaults), end="")
        return None
    asked = {"--show-config", "--dry-run"} & set(argv)
    loaded = load_recipe(command, [word for word in argv if word not in asked], files=files)
    if "--show-config" in asked:
        print("\n".join(loaded.origins))
    elif "--dry-run" in asked:
        print(f"the recipe is good; all of it is in {record_recipe(command, loaded.recipe)}")
    else:
        _run(loaded.recipe)
    return None


def _run(recipe: Section) -> None:
    # Imported where they are needed: what runs a job imports torch, which takes seconds.
    match recipe:
        case SftRecipe():
            from torchrl_ckpt.launcher.sft import run_sft

            run_sft(recipe)
        case RlRecipe():
            from torchrl_ckpt.launcher.rl import run_rl

            run_rl(recipe)
        case InferenceConfig():
            from torchrl_ckpt.launcher.standalone import run_inference

            run_inference(recipe)
        case RlTrainerConfig() | OrchestratorConfig():
            from torchrl_ckpt.launcher.standalone import run_component

            run_component(recipe)


def _main(command: str) -> None:
    sys.exit(exit_code_of(lambda: recipe_command(command, sys.argv[1:])))
