"""Provides the weights that a job starts from, and trains them first if they are missing."""

from __future__ import annotations

from pathlib import Path

from torchrl_ckpt.config.section import PluginTable
from torchrl_ckpt.config.sft_recipe import SftRecipe
from torchrl_ckpt.config.trainer import RlTrainerConfig
from torchrl_ckpt.launcher.recipe_loader import load_recipe
from torchrl_ckpt.launcher.sft import run_sft
from torchrl_ckpt.run.attempt import Attempt


def warm_started(config: RlTrainerConfig, attempt: Attempt) -> RlTrainerConfig:
    """Return `config` with the final weights of its `warm_start` recipe as its model.

    A resumed attempt takes its weights from the checkpoint, so nothing is trained for it.
    """
    if config.warm_start is None or attempt.resume_step is not None:
        return config
    weights = final_weights(config.warm_start)
    # The directory defines the architecture, so the recipe's is left out.
    model = PluginTable.model_validate({"type": config.model.type, "name": str(weights)})
    return config.model_copy(update={"model": model})


def warm_start_recipe(recipe_file: Path) -> tuple[SftRecipe, Path]:
    """Return a fine-tuning recipe, and the directory of its final model, which may not exist."""
    recipe = load_recipe("sft", [], files=[recipe_file]).recipe
    assert isinstance(recipe, SftRecipe)
    return recipe, recipe.output_dir / "weights" / f"step_{recipe.max_steps}"


def final_weights(recipe_file: Path) -> Path:
    """Return the directory of a fine-tuning recipe's final model; train it if it is missing."""
    recipe, weights = warm_start_recipe(recipe_file)
    if not weights.is_dir():
        print(f"no weights in {weights} yet: training {recipe_file} first", flush=True)
        run_sft(recipe)
    return weights
