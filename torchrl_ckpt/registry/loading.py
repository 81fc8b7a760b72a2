"""Imports the plugin that was asked for, and no other, checks it, and makes an instance of it."""

from __future__ import annotations

import dataclasses
import importlib.util
import inspect
import logging
import traceback
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from importlib.machinery import PathFinder
from pathlib import Path
from typing import Any, ClassVar, Generic, Literal, Protocol, get_origin, get_type_hints, overload

from pydantic import BaseModel, TypeAdapter, ValidationError

from torchrl_ckpt.config.describe import describe, dotted, listed, toml
from torchrl_ckpt.config.mismatch import Mismatch, mismatches
from torchrl_ckpt.config.option_spec import OptionSpec, fields, is_open
from torchrl_ckpt.config.section import PluginTable
from torchrl_ckpt.config.variables import map_secrets, read_secret, require_variable
from torchrl_ckpt.plugin_api.checked_environment import CheckedEnvironment
from torchrl_ckpt.plugin_api.checkpoint_backends import CheckpointBackend
from torchrl_ckpt.plugin_api.engines import Engine
from torchrl_ckpt.plugin_api.environments import Environment
from torchrl_ckpt.plugin_api.errors import PluginBroken, RecipeError, UserError
from torchrl_ckpt.plugin_api.losses import Loss
from torchrl_ckpt.plugin_api.models import Model
from torchrl_ckpt.plugin_api.plugin import PLUGIN_API, Kind
from torchrl_ckpt.plugin_api.similar_names import did_you_mean, similar_name
from torchrl_ckpt.registry.discovery import FoundPlugin
from torchrl_ckpt.registry.lookup import find_plugin

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class LoadedPlugin:
    """A plugin that has been imported and keeps its contract."""

    found: FoundPlugin
    cls: Any
    config: type | None
    """Its `Config`; None if it takes no options."""

    @property
    def options(self) -> Mapping[str, OptionSpec]:
        """The options that its `Config` declares, in their order."""
        return {} if self.config is None else fields(self.config)


def load_plugin(kind: Kind, name: str) -> LoadedPlugin:
    """Load the plugin that `type = "name"` or `type = "distribution:name"` means.

    Raises `PluginNotFound`, `PluginConflict` and `PluginBroken`.
    """
    return load_found(find_plugin(kind, name))


def load_found(found: FoundPlugin) -> LoadedPlugin:
    """Import and check one plugin. Raises `PluginBroken`."""
    try:
        cls = found.import_object()
    except (Exception, SystemExit) as error:  # importing it may do anything
        raise _broken(found, error, _import_remedy(found, error)) from error
    if broken_promises := violations(found.kind, cls):
        raise _broken(found, "; ".join(broken_promises), _update(found))
    config = getattr(cls, "Config", None)
    if config is not None and not _is_config(config):
        cause = "its `Config` is neither a dataclass nor a pydantic model"
        raise _broken(found, cause, _update(found))
    plugin = LoadedPlugin(found, cls, config)
    try:
        _ = plugin.options
    except Exception as error:  # pydantic has no common base for what it raises here
        cause = f"its `Config` cannot be read: {type(error).__name__}: {error}"
        raise _broken(found, cause, _update(found)) from error
    return plugin


def config_class(kind: Kind, name: str) -> type | None:
    """Return a plugin's `Config`, or None if it takes no options. Raises as `load_plugin` does."""
    return load_plugin(kind, name).config


@overload
def create(kind: Literal["models"], table: PluginTable, *, any_variable: bool = ...) -> Model: ...
@overload
def create(kind: Literal["losses"], table: PluginTable, *, any_variable: bool = ...) -> Loss: ...
@overload
def create(
    kind: Literal["checkpoint_backends"], table: PluginTable, *, any_variable: bool = ...
) -> CheckpointBackend: ...
@overload
def create(
    kind: Literal["environments"], table: PluginTable, *, any_variable: bool = ...
) -> CheckedEnvironment: ...
@overload
def create(kind: Literal["engines"], table: PluginTable, *, any_variable: bool = ...) -> Engine: ...
def create(kind: Kind, table: PluginTable, *, any_variable: bool = True) -> Any:
    """Make an instance of the plugin that `table` names, with the table's options.

    Secrets among them are read here from the variables that the options name. `any_variable` is
    False for a table that no recipe of the user's has passed, such as one of a checkpoint.

    An environment becomes a `CheckedEnvironment`, so that no unchecked answer of it gets in.

    Raises as `load_plugin` does, `RecipeError` for options that do not fit its `Config`, any
    `UserError` that its constructor raises, and `PluginBroken` for every other error of it.
    """
    plugin = load_plugin(kind, table.type)
    arguments = _constructor_arguments(plugin, table.options, any_variable=any_variable)
    try:
        instance = plugin.cls(*arguments)
    except UserError:
        raise
    except Exception as error:
        raise _broken(plugin.found, error, _update(plugin.found)) from error
    return CheckedEnvironment(table.type, instance) if kind == "environments" else instance


def require_variables(kind: Kind, table: PluginTable) -> None:
    """Raise `RecipeError` if a secret among the options is in a variable that is not set."""
    plugin = load_plugin(kind, table.type)
    if plugin.config is not None:
        try:
            map_secrets(table.options, OptionSpec(plugin.config), require_variable)
        except RecipeError as error:
            raise RecipeError(f"the {kind} plugin `{table.type}`: {error}") from error


def _is_config(candidate: Any) -> bool:
    return inspect.isclass(candidate) and (
        dataclasses.is_dataclass(candidate) or issubclass(candidate, BaseModel)
    )


def _constructor_arguments(
    plugin: LoadedPlugin, options: Mapping[str, Any], *, any_variable: bool
) -> tuple[Any, ...]:
    """What to call the class with: its `Config`, or nothing if it has none."""
    owner = f"the {plugin.found.kind} plugin `{plugin.found.name}`"
    if plugin.config is None:
        if options:
            raise RecipeError(f"{owner} takes no options, but was given {', '.join(options)}.")
        return ()
    try:
        return (_build_config(plugin.config, options, any_variable=any_variable),)
    except RecipeError as error:
        raise RecipeError(f"{owner} does not take these options: {error}") from error


def _build_config(config: type, options: Mapping[str, Any], *, any_variable: bool) -> Any:
    """An instance of `config`. Raises `RecipeError` with everything that is wrong with `options`.

    Unknown keys are errors unless `config` asks for them: by default, dataclasses and pydantic
    models ignore them.
    """
    spec = OptionSpec(config)
    unknown = [] if is_open(config) else [name for name in options if name not in fields(config)]
    issues = [_unknown_option(name, list(fields(config))) for name in unknown]
    known = {name: value for name, value in options.items() if name not in unknown}
    instance: Any = None
    try:
        values = map_secrets(known, spec, partial(read_secret, any_variable=any_variable))
        instance = TypeAdapter(config).validate_python(values)
    except RecipeError as error:
        issues.append(f"a secret cannot be read: {error}")
    except ValidationError as error:
        issues += [_unfit_option(mismatch, known) for mismatch in mismatches(error, spec)]
    if issues:
        raise RecipeError("; ".join(issues))
    return instance


def _unknown_option(name: str, known: list[str]) -> str:
    hint = did_you_mean(similar_name(name, known))
    return f"unknown option `{name}`" + (hint or f"; it has {listed(known, 'and') or 'none'}")


def _unfit_option(mismatch: Mismatch, options: Mapping[str, Any]) -> str:
    if mismatch.is_missing:
        return f"`{dotted(mismatch.key)}` is missing ({describe(mismatch.spec)})"
    value: Any = options
    for name in mismatch.key:
        value = value[name]
    return mismatch.text(mismatch.key, toml(value))


def broken(kind: Kind, name: str, cause: str | BaseException, when: str = "") -> PluginBroken:
    """The error that the plugin called `name` breaks its contract, in a way that only its use
    shows. `when` begins the message of an exception."""
    found = find_plugin(kind, name)
    return _broken(found, cause, _update(found), when)


def syntax_error(found: FoundPlugin) -> str | None:
    """Path, line and cause, if the plugin's module cannot be compiled. Imports nothing."""
    name, folders = "", None
    for part in found.entry_point.partition(":")[0].strip().split("."):
        name = f"{name}.{part}" if name else part
        try:
            finder = PathFinder if folders else importlib.util
            spec = finder.find_spec(name, folders)
            if spec is None:
                return None
            if spec.origin is not None and spec.origin.endswith(".py"):
                compile(Path(spec.origin).read_bytes(), spec.origin, "exec", dont_inherit=True)
        except SyntaxError as error:
            return _described(found, error)
        except (OSError, ValueError, ImportError):  # Importing it says what is wrong.
            return None
        if not spec.submodule_search_locations:
            return None
        folders = spec.submodule_search_locations
    return None


def _broken(
    found: FoundPlugin, cause: str | BaseException, remedy: str, when: str = ""
) -> PluginBroken:
    if isinstance(cause, BaseException):
        _log.debug("%s plugin `%s` raised", found.kind, found.name, exc_info=cause)
        cause = when + _described(found, cause)
    if found.metadata.suffix == ".egg-info":
        remedy += (
            f"\nIt is announced by what a build left in {found.metadata.parent}: if "
            f"{found.distribution} is not installed from there, delete {found.metadata.name}."
        )
    return PluginBroken(
        f"the {found.kind} plugin `{found.name}` cannot be used: {cause.rstrip('.')}.\n"
        f"  distribution: {found.distribution} {found.version}\n"
        f"  entry point:  {found.entry_point}\n"
        f"  announced in: {found.metadata}\n"
        f"{remedy}"
    )


def _described(found: FoundPlugin, error: BaseException) -> str:
    """Type and message of `error`, and the file and line of the plugin where it was raised."""
    if isinstance(error, SyntaxError) and error.filename is not None:
        return f"{type(error).__name__}: {error.msg} ({error.filename}:{error.lineno})"
    frames = traceback.extract_tb(error.__traceback__)
    package = _package(found)
    own = [
        frame
        for frame in frames
        if package in (Path(frame.filename).stem, *Path(frame.filename).parts)
    ]
    place = f" ({own[-1].filename}:{own[-1].lineno})" if own else ""
    return f"{type(error).__name__}: {error}{place}"


def _package(found: FoundPlugin) -> str:
    return found.entry_point.partition(":")[0].partition(".")[0]


def _import_remedy(found: FoundPlugin, error: BaseException) -> str:
    package = _package(found)
    missing = error.name if isinstance(error, ModuleNotFoundError) else None
    if missing is None:
        return _update(found)
    if missing.partition(".")[0] == package:
        return (
            "The installed files do not hold what the distribution announces: pip install "
            f"--force-reinstall {found.distribution}"
        )
    return f"It needs `{missing}`, which is not installed in this environment: install that."


def _update(found: FoundPlugin) -> str:
    return (
        f"Try pip install --upgrade {found.distribution}; if that does not help, report it to "
        "its author and use another plugin."
    )


_CONTRACTS: dict[Kind, Any] = {
    "models": Model,
    "losses": Loss,
    "checkpoint_backends": CheckpointBackend,
    "environments": Environment,
    "engines": Engine,
}


def violations(kind: Kind, candidate: Any) -> list[str]:
    """Return what keeps `candidate` from being a plugin of `kind`: nothing, if it is one.

    Only what a class can show is checked: attributes that the contract declares as `ClassVar`, and
    methods.
    """
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
    for name, hint in get_type_hints(contract).items():  # with those of the contract's bases
        if get_origin(hint) is ClassVar and not hasattr(candidate, name):
            yield f"it has no attribute `{name}`"


def _missing_methods(contract: type, candidate: type) -> Iterator[str]:
    for base in contract.__mro__:
        if base in (object, Generic, Protocol):
            continue
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
