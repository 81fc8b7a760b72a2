"""Types in plain words and values as TOML, for messages, listings and help."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

from torchrl_ckpt.config.option_spec import Key, OptionSpec

_NOUNS: dict[Any, tuple[str, str]] = {
    bool: ("true or false", "booleans"),
    int: ("a whole number", "whole numbers"),
    float: ("a number", "numbers"),
    str: ("text", "texts"),
    Path: ("a path", "paths"),
    Any: ("a value", "values"),
}
_BOUNDS = {"ge": "at least", "gt": "above", "le": "at most", "lt": "below"}


def describe(shape: OptionSpec) -> str:
    """What a key takes: `a whole number, at least 1, or off`."""
    alternatives = [_noun(arm) + _bounds(arm) for arm in shape.arms]
    if len(alternatives) > 1:
        alternatives[-1] += _bounds(shape)
    alternatives += ["off"] * shape.optional
    compound = any("," in words or " or " in words for words in alternatives)
    return (", or " if compound else " or ").join(alternatives)


def toml(value: Any) -> str:
    """A value as TOML has it; off is `false`."""
    if value is None:
        return "false"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int | float):
        return repr(value)
    if isinstance(value, dict):
        inside = ", ".join(f"{toml_key(name)} = {toml(inner)}" for name, inner in value.items())
        return f"{{{inside}}}"
    if isinstance(value, list | tuple | set | frozenset):
        return f"[{', '.join(toml(inner) for inner in value)}]"
    return json.dumps(str(value), ensure_ascii=False)


def toml_key(name: str) -> str:
    """One part of a dotted key, quoted where TOML wants it."""
    bare = name.replace("-", "").replace("_", "")
    return name if bare.isalnum() and bare.isascii() else json.dumps(name, ensure_ascii=False)


def dotted(key: Key) -> str:
    """A key as it is written in a message and in TOML."""
    return ".".join(map(toml_key, key))


def flag(key: Key) -> str:
    """A key as it is written on the command line."""
    return "--" + dotted(key).replace("_", "-")


def listed(words: list[str], conjunction: str) -> str:
    """`a, b or c`."""
    return f" {conjunction} ".join([", ".join(words[:-1])] * bool(words[1:]) + words[-1:])


def _noun(shape: OptionSpec) -> str:
    core = shape.core
    if core in _NOUNS:
        return _NOUNS[core][0]
    if get_origin(core) is Literal:
        return listed([f"`{choice}`" for choice in get_args(core)], "or")
    if shape.kind:
        return "the name of a plugin or a table with its `type`"
    if shape.is_table:
        return "a table"
    if shape.items:
        return _list_noun(shape.items)
    return getattr(core, "__name__", str(core))


def _list_noun(items: tuple[OptionSpec, ...]) -> str:
    """`a list of paths`, `a list of 2 numbers`, or elements one by one behind a colon."""
    count = f"{len(items)} " if len(items) > 1 else ""
    if len({item.core for item in items}) == 1 and items[0].core in _NOUNS:
        return f"a list of {count}{_NOUNS[items[0].core][1]}"
    return f"a list of: {', '.join(describe(item) for item in items)}"


def _bounds(shape: OptionSpec) -> str:
    return "".join(
        f", {words} {getattr(mark, bound)}"
        for mark in shape.metadata
        for bound, words in _BOUNDS.items()
        if getattr(mark, bound, None) is not None
    )
