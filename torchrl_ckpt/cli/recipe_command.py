"""What all commands that take a recipe have in common."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from torchrl_ckpt.recipe import help_text
from torchrl_ckpt.recipe.schema import Inference, Orchestrator, RlRecipe, RlTrainer, SftRecipe

_ABOUT = {
    "sft": "Supervised fine-tuning.",
    "rl": "Reinforcement learning: trainer, orchestrator and, with its section, inference.",
    "trainer": "The trainer of a reinforcement learning job alone.",
    "orchestrator": "The orchestrator of a reinforcement learning job alone.",
    "inference": "The inference server alone. It stays up until it is stopped.",
}


def recipe_command(command: str, argv: Sequence[str], *, files: Sequence[Path] = ()) -> int | None:
    """Resolve the recipe of `command` and run it, or only show it."""
    from torchrl_ckpt.runner.resolved import SCHEMAS

    if "-h" in argv or "--help" in argv:
        print(help_text(SCHEMAS[command], command, _ABOUT[command]), end="")
        return None

    from torchrl_ckpt.run_directory import RunDirectory
    from torchrl_ckpt.runner.loading import load_recipe
    from torchrl_ckpt.runner.resolved import write_resolved

    asked = {"--show-config", "--dry-run"} & set(argv)
    loaded = load_recipe(command, [word for word in argv if word not in asked], files=files)
    if "--show-config" in asked:
        print("\n".join(loaded.origins))
    elif "--dry-run" in asked:
        output_dir = _output_dir(loaded.recipe)
        output_dir.mkdir(parents=True, exist_ok=True)
        resolved = RunDirectory(output_dir, attempt=0).resolved
        write_resolved(resolved, command, loaded.recipe)
        print(f"the recipe is good; all of it is in {resolved}")
    else:
        _run(loaded.recipe)
    return None


def _output_dir(recipe: object) -> Path:
    return recipe.trainer.output_dir if isinstance(recipe, RlRecipe) else recipe.output_dir  # type: ignore[attr-defined]


def _run(recipe: object) -> None:
    match recipe:
        case SftRecipe():
            from torchrl_ckpt.runner.sft import run_sft

            run_sft(recipe)
        case RlRecipe():
            from torchrl_ckpt.runner.rl import run_rl

            run_rl(recipe)
        case Inference():
            from torchrl_ckpt.runner.alone import run_inference

            run_inference(recipe)
        case RlTrainer() | Orchestrator():
            from torchrl_ckpt.runner.alone import run_component

            run_component(recipe)
