"""Sees to it that the model which a job starts from is there, and trains it first if it is not."""

from __future__ import annotations

from pathlib import Path

from torchrl_ckpt.config.section import PluginTable
from torchrl_ckpt.config.sft_recipe import SftRecipe
from torchrl_ckpt.config.trainer import RlTrainerConfig
from torchrl_ckpt.launcher.recipe_loader import load_recipe
from torchrl_ckpt.launcher.sft import run_sft


def warm_started(config: RlTrainerConfig) -> RlTrainerConfig:
    """`config` with the final weights of its `warm_start` recipe as its model."""
    if config.warm_start is None:
        return config
    weights = final_weights(config.warm_start)
    # The directory brings the architecture along; the recipe's would contradict it.
    model = PluginTable.model_validate({"type": config.model.type, "name": str(weights)})
    return config.model_copy(update={"model": model})


def final_weights(recipe_file: Path) -> Path:
    """Where the final model of a fine-tuning recipe is; trained now if it is not there."""
    recipe = load_recipe("sft", [], files=[recipe_file]).recipe
    assert isinstance(recipe, SftRecipe)
    weights = recipe.output_dir / "weights" / f"step_{recipe.max_steps}"
    if not weights.is_dir():
        print(f"no weights in {weights} yet: training {recipe_file} first", flush=True)
        run_sft(recipe)
    return weights
