"""Imports the plugin that was asked for, and it alone, checks it, and makes an instance of it."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torchrl_ckpt.contracts import Kind
from torchrl_ckpt.errors import PluginBroken, RecipeError, UserError
from torchrl_ckpt.registry.checking import violations
from torchrl_ckpt.registry.discovery import FoundPlugin
from torchrl_ckpt.registry.lookup import find
from torchrl_ckpt.registry.options import Option, build_config, is_config, options_of

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class LoadedPlugin:
    """A plugin that has been imported and keeps its contract."""

    found: FoundPlugin
    cls: Any
    config: type | None
    """Its `Config`."""
    options: tuple[Option, ...]
    """What its `Config` declares."""


def load(kind: Kind, name: str) -> LoadedPlugin:
    """The plugin that `type = "name"` or `type = "distribution:name"` means.

    Raises `PluginNotFound`, `PluginConflict` and `PluginBroken`.
    """
    return load_found(find(kind, name))


def load_found(found: FoundPlugin) -> LoadedPlugin:
    """Import and check one plugin. Raises `PluginBroken`."""
    try:
        cls = found.import_object()
    except (Exception, SystemExit) as error:  # it may do anything while it is imported
        raise _broken(found, error, _import_remedy(found, error)) from error
    if problems := violations(found.kind, cls):
        raise _broken(found, "; ".join(problems), _update(found))
    config = getattr(cls, "Config", None)
    if config is None:
        return LoadedPlugin(found, cls, None, ())
    if not is_config(config):
        problem = "its `Config` is neither a dataclass nor a pydantic model"
        raise _broken(found, problem, _update(found))
    try:
        options = options_of(config)
    except Exception as error:  # pydantic has no common base for what it raises here
        problem = f"its `Config` cannot be read: {type(error).__name__}: {error}"
        raise _broken(found, problem, _update(found)) from error
    return LoadedPlugin(found, cls, config, options)


def config_class(kind: Kind, name: str) -> type | None:
    """The `Config` of a plugin, or None where it has no options. Raises as `load` does."""
    return load(kind, name).config


def create(kind: Kind, table_type: str, options: Mapping[str, Any]) -> Any:
    """An instance of the plugin that a recipe's table names, made with the table's other keys.

    Raises as `load` does, `RecipeError` where the options are not what its `Config` declares, any
    `UserError` that its constructor raises, and `PluginBroken` for every other error of it.
    """
    plugin = load(kind, table_type)
    try:
        return plugin.cls(*_arguments(plugin, options))
    except UserError:
        raise
    except Exception as error:
        raise _broken(plugin.found, error, _update(plugin.found)) from error


def _arguments(plugin: LoadedPlugin, table: Mapping[str, Any]) -> tuple[Any, ...]:
    """What to call the class with: its `Config` as `table` fills it, or nothing if it has none."""
    owner = f"The {plugin.found.kind} plugin `{plugin.found.name}`"
    if plugin.config is not None:
        try:
            return (build_config(plugin.config, plugin.options, table),)
        except RecipeError as error:
            raise RecipeError(f"{owner} does not take these options: {error}") from error
    if table:
        raise RecipeError(f"{owner} takes no options, but was given {', '.join(table)}.")
    return ()


def _broken(found: FoundPlugin, cause: str | BaseException, remedy: str) -> PluginBroken:
    if isinstance(cause, BaseException):
        _LOG.debug("%s plugin `%s` raised", found.kind, found.name, exc_info=cause)
        cause = f"{type(cause).__name__}: {cause}"
    if found.metadata.suffix == ".egg-info":
        remedy += (
            f"\nIt is announced by what a build left in {found.metadata.parent}: if "
            f"{found.distribution} is not installed from there, delete {found.metadata.name}."
        )
    return PluginBroken(
        f"The {found.kind} plugin `{found.name}` cannot be used: {cause.rstrip('.')}.\n"
        f"  distribution: {found.distribution} {found.version}\n"
        f"  entry point:  {found.entry_point}\n"
        f"  announced in: {found.metadata}\n"
        f"{remedy}"
    )


def _import_remedy(found: FoundPlugin, error: BaseException) -> str:
    package = found.entry_point.partition(":")[0].partition(".")[0]
    missing = error.name if isinstance(error, ModuleNotFoundError) else None
    if missing is None:
        return _update(found)
    if missing.partition(".")[0] == package:
        return (
            "What is installed is not what it announces: pip install --force-reinstall "
            f"{found.distribution}"
        )
    return f"It needs `{missing}`, which is not installed in this environment: install that."


def _update(found: FoundPlugin) -> str:
    return (
        f"Try pip install --upgrade {found.distribution}; if that does not help, tell its author, "
        "and name another plugin meanwhile."
    )
