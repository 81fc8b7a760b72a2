"""Plugins by entry point: discover, load, check, explain."""

from torchrl_ckpt.registry.discovery import FoundPlugin, Installed, discover
from torchrl_ckpt.registry.loading import LoadedPlugin, config_class, create, load, load_found
from torchrl_ckpt.registry.lookup import find, find_all
from torchrl_ckpt.registry.options import Option

__all__ = [
    "FoundPlugin",
    "Installed",
    "LoadedPlugin",
    "Option",
    "config_class",
    "create",
    "discover",
    "find",
    "find_all",
    "load",
    "load_found",
]
