"""Imports the plugin that was asked for, and it alone, checks it, and makes an instance of it."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from torchrl_ckpt.plugin_api.checkpoint_backends import CheckpointBackend
from torchrl_ckpt.plugin_api.engines import Engine
from torchrl_ckpt.plugin_api.environments import Environment
from torchrl_ckpt.plugin_api.errors import PluginBroken, RecipeError, UserError
from torchrl_ckpt.plugin_api.losses import Loss
from torchrl_ckpt.plugin_api.models import Model
from torchrl_ckpt.plugin_api.plugin import PLUGIN_API, Kind
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


_CONTRACTS: dict[Kind, Any] = {
    "models": Model,
    "losses": Loss,
    "checkpoint_backends": CheckpointBackend,
    "environments": Environment,
    "engines": Engine,
}


def violations(kind: Kind, candidate: Any) -> list[str]:
    """What keeps `candidate` from being a plugin of `kind`: nothing, if it is one."""
    if not inspect.isclass(candidate):
        return [f"it is {candidate!r}, not a class"]
    api = getattr(candidate, "plugin_api", None)
    if api is None:
        return [f"it does not state `plugin_api = {PLUGIN_API}`"]
    if api != PLUGIN_API:
        return [f"it is written for plugin_api {api!r}, and this torchrl-ckpt has {PLUGIN_API}"]
    contract = _CONTRACTS[kind]
    return [*_missing_attributes(contract, candidate), *_missing_methods(contract, candidate)]


def _missing_attributes(contract: type, candidate: type) -> Iterator[str]:
    for base in _protocols(contract):
        for name in inspect.get_annotations(base):
            if not hasattr(candidate, name):
                yield f"it has no attribute `{name}`"


def _missing_methods(contract: type, candidate: type) -> Iterator[str]:
    for base in _protocols(contract):
        for name, member in vars(base).items():
            if not inspect.isfunction(member) or (name.startswith("_") and name != "__call__"):
                continue
            # Not `hasattr`: every class has a `__call__` from `type`, and one that derives from
            # the Protocol inherits its empty methods.
            owner = next((owner for owner in candidate.__mro__ if name in vars(owner)), base)
            if owner in contract.__mro__:
                yield f"it has no method `{name}`"
            elif not callable(getattr(candidate, name)):
                yield f"its `{name}` cannot be called"


def _protocols(contract: type) -> list[type]:
    """The contract and those it extends, without what `typing` puts below them."""
    return [base for base in contract.__mro__ if base.__module__ == contract.__module__]
