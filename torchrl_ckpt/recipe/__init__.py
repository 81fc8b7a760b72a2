"""TOML recipes with includes, flags, layers, origins, and the schema of every option."""

from torchrl_ckpt.recipe.composition import Composition, compose, root_files
from torchrl_ckpt.recipe.help import help_text
from torchrl_ckpt.recipe.listing import show_config
from torchrl_ckpt.recipe.settings import from_json, named_plugins, to_json
from torchrl_ckpt.recipe.validation import PluginConfig, validate

__all__ = [
    "Composition",
    "PluginConfig",
    "compose",
    "from_json",
    "help_text",
    "named_plugins",
    "root_files",
    "show_config",
    "to_json",
    "validate",
]
