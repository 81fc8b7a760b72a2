"""TOML recipes with includes, flags, layers, origins, and the schema of every option."""

from torchrl_ckpt.recipe.compose import Composition, compose, root_files
from torchrl_ckpt.recipe.help import help_text
from torchrl_ckpt.recipe.show_config import show_config
from torchrl_ckpt.recipe.validate import PluginConfig, validate

__all__ = [
    "Composition",
    "PluginConfig",
    "compose",
    "help_text",
    "root_files",
    "show_config",
    "validate",
]
