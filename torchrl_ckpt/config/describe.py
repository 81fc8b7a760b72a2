"""Types in plain words and values as TOML, for messages and help."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

from pydantic import BaseModel, SecretBytes, SecretStr

from torchrl_ckpt.config.option_spec import REQUIRED, Key, OptionSpec
from torchrl_ckpt.config.section import PluginTable

_NOUNS: dict[Any, tuple[str, str]] = {
    bool: ("true or false", "booleans"),
    int: ("a whole number", "whole numbers"),
    float: ("a number", "numbers"),
    str: ("text", "texts"),
    Path: ("a path", "paths"),
    Any: ("a value", "values"),
    SecretStr: ("a secret, as env:VARIABLE", "secrets, each as env:VARIABLE"),
    SecretBytes: ("a secret, as env:VARIABLE", "secrets, each as env:VARIABLE"),
}
_BOUNDS = {"ge": "at least", "gt": "above", "le": "at most", "lt": "below"}


def describe(spec: OptionSpec) -> str:
    """What an option takes: `a whole number, at least 1, or off`."""
    alternatives = [_noun(arm) + _bounds(arm) for arm in spec.arms]
    if len(alternatives) > 1:
        alternatives[-1] += _bounds(spec)
    alternatives += ["off"] * spec.optional
    compound = any("," in text or " or " in text for text in alternatives)
    return (", or " if compound else " or ").join(alternatives)


def default_text(spec: OptionSpec) -> str:
    """The default of an option: as TOML, `unset`, or `required` if it has none."""
    if spec.default is REQUIRED:
        return "required"
    if isinstance(spec.default, PluginTable):
        return spec.default.type
    if isinstance(spec.default, SecretStr | SecretBytes):
        return "***"
    return "unset" if spec.default is None else toml(spec.default)


def toml(value: Any) -> str:
    """A value in TOML; None, which TOML does not have, is `false`."""
    if value is None:
        return "false"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int | float):
        return repr(value)
    if isinstance(value, BaseModel):
        value = value.model_dump()
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        value = dataclasses.asdict(value)
    if isinstance(value, dict):
        inside = ", ".join(f"{toml_key(name)} = {toml(inner)}" for name, inner in value.items())
        return f"{{{inside}}}"
    if isinstance(value, list | tuple | set | frozenset):
        return f"[{', '.join(toml(inner) for inner in value)}]"
    return json.dumps(str(value), ensure_ascii=False)


def toml_key(name: str) -> str:
    """One part of a dotted key, quoted where TOML needs it."""
    bare = name.replace("-", "").replace("_", "")
    return name if bare.isalnum() and bare.isascii() else json.dumps(name, ensure_ascii=False)


def dotted(key: Key) -> str:
    """A key as it is written in a message and in TOML."""
    return ".".join(map(toml_key, key))


def flag(key: Key) -> str:
    """A key as it is written on the command line."""
    return "--" + dotted(key).replace("_", "-")


def listed(items: list[str], conjunction: str) -> str:
    """`a, b or c`."""
    return f" {conjunction} ".join([", ".join(items[:-1])] * bool(items[1:]) + items[-1:])


def _noun(spec: OptionSpec) -> str:
    core = spec.core
    if core in _NOUNS:
        return _NOUNS[core][0]
    if get_origin(core) is Literal:
        return listed([f"`{choice}`" for choice in get_args(core)], "or")
    if spec.kind:
        return "the name of a plugin or a table with its `type`"
    if spec.is_table:
        return "a table"
    if spec.items:
        return _list_noun(spec.items)
    return getattr(core, "__name__", str(core))


def _list_noun(items: tuple[OptionSpec, ...]) -> str:
    """`a list of paths`, `a list of 2 numbers`, or the elements one by one after a colon."""
    count = f"{len(items)} " if len(items) > 1 else ""
    if len({item.core for item in items}) == 1 and items[0].core in _NOUNS:
        return f"a list of {count}{_NOUNS[items[0].core][1]}"
    return f"a list of: {', '.join(describe(item) for item in items)}"


def _bounds(spec: OptionSpec) -> str:
    return "".join(
        f", {phrase} {getattr(mark, bound)}"
        for mark in spec.metadata
        for bound, phrase in _BOUNDS.items()
        if getattr(mark, bound, None) is not None
    )
