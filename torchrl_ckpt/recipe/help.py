"""`--help` of a command that takes a recipe: every key, with its type, default and meaning."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from textwrap import fill
from typing import Any

from pydantic import BaseModel

from torchrl_ckpt.recipe.problems import flag
from torchrl_ckpt.recipe.schema import PluginTable, Section
from torchrl_ckpt.recipe.shape import REQUIRED, Shape, all_keys, fields
from torchrl_ckpt.recipe.shared import sections_sharing, shared_keys
from torchrl_ckpt.recipe.tree import Key
from torchrl_ckpt.recipe.words import describe, listed, toml

_WIDTH = 88

_USAGE = """\
usage: {prog} [@ FILE] [--SECTION @ FILE] [--KEY VALUE] ...

{summary}

A recipe is a TOML file. Every key of it is also a flag, and flags beat files.

  @ FILE             merge a recipe; again for another, which beats the one before
  --SECTION @ FILE   merge a file into a section, {example}
  --KEY VALUE        set a key; `-` and `_` are alike in its name; a list is `[1, 2]` or `1 2`
  --SECTION          switch a section on that is off by default
  --no-KEY           switch off a section, a value that may be off, or what is true or false
  --show-config      print every value and where it comes from, and exit
  --dry-run          check the recipe and its plugins, write resolved.json, and exit

In a file, `"@" = "other.toml"` in a table merges that file beneath the table's own keys, and
`section = "@ other.toml"` is short for a table with nothing else. Paths in a file are relative
to that file, on the command line to the working directory.
"""


def help_text(schema: type[Section], prog: str, summary: str = "") -> str:
    """The help of the command `prog`, whose recipe is a `schema`; `summary` says what it does."""
    root = Shape(schema)
    sections = [name for name, shape in fields(schema).items() if shape.section]
    sections.sort(key=shared_keys(root).__contains__)
    usage = _USAGE.format(
        prog=prog,
        summary=fill(summary or _documentation(schema), _WIDTH),
        example=f"such as `--{sections[0]} @ FILE`",
    )
    return "\n".join([usage, *_section(root, (), root, {})])


def _section(table: Shape, key: Key, root: Shape, explained: dict[type, Key]) -> Iterator[str]:
    """The help on the keys of a section, then on the sections in it.

    `explained` are the sections of which the keys have been explained, and where.
    """
    assert table.section
    explained[table.section] = key
    children = {(*key, name): shape for name, shape in fields(table.section).items()}
    for path, shape in children.items():
        if not shape.section:
            yield from _key(path, shape, root)
    for path, shape in children.items():
        if shape.section:
            yield from _heading(path, shape, root)
            if shape.section in explained:
                yield _reference(path, shape.section, explained[shape.section])
            else:
                yield from _section(shape, path, root, explained)


def _heading(key: Key, shape: Shape, root: Shape) -> Iterator[str]:
    name = ".".join(key)
    yield f"[{name}]" + "-" * (_WIDTH - len(name) - 2)
    assert shape.section
    text = shape.documentation or _documentation(shape.section)
    if shape.optional:
        default = "on" if isinstance(shape.default, BaseModel) else "off"
        text += f" Can be off; default: {default}."
    yield fill(text + _reach(key, root), _WIDTH) + "\n"


def _key(key: Key, shape: Shape, root: Shape) -> Iterator[str]:
    facts = (
        [describe(shape)] if not shape.kind else ["NAME" + (" or off" if shape.optional else "")]
    )
    facts.append("required" if shape.default is REQUIRED else f"default: {_default(shape.default)}")
    yield f"  {flag(key)}  {'; '.join(facts)}"
    text = shape.documentation + _reach(key, root)
    if shape.kind:
        text += (
            f" Options go in as `{flag(key)}.OPTION`:"
            f" see `torchrl-ckpt plugins show {shape.kind} NAME`."
        )
    if text.strip():
        yield fill(text.strip(), _WIDTH, initial_indent=" " * 6, subsequent_indent=" " * 6)
    yield ""


def _reach(key: Key, root: Shape) -> str:
    """The sections that a shared key reaches."""
    if len(key) > 1 or key[0] not in shared_keys(root):
        return ""
    sections = [f"`{section}`" for section in sections_sharing(root, key[0])]
    return f" Shared: reaches {listed(sections, 'and')}."


def _reference(key: Key, section: type, explained_at: Key) -> str:
    """All keys of a section whose like has been explained, by name only."""
    names = ", ".join(flag(path) for path, _ in all_keys(section, key))
    text = f"As {flag(explained_at)} above: {names}"
    return (
        fill(
            text,
            _WIDTH,
            initial_indent="  ",
            subsequent_indent="      ",
            break_on_hyphens=False,
        )
        + "\n"
    )


def _default(value: Any) -> str:
    if value is None:
        return "off"
    return value.type if isinstance(value, PluginTable) else toml(value)


def _documentation(section: type) -> str:
    return " ".join((inspect.getdoc(section) or "").split())
