"""`--help` of a command that takes a recipe: every key, with its type, default and meaning."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from textwrap import fill
from types import MappingProxyType
from typing import Any

from torchrl_ckpt.config.describe import describe, dotted, flag, listed, toml
from torchrl_ckpt.config.option_spec import REQUIRED, Key, OptionSpec, all_keys, fields
from torchrl_ckpt.config.section import PluginTable, Section

_WIDTH = 88

_USAGE = """\
usage: {prog} [@ FILE] [--SECTION @ FILE] [--KEY VALUE] ...

{summary}

A recipe is a TOML file. Every key of it is also a flag, and flags beat files.

  @ FILE             merge a recipe; give several, and a later one beats an earlier
  --SECTION @ FILE   merge a file into a section
  --KEY VALUE        set a key; `-` and `_` are alike in its name; lists: `[1, 2]` or `1 2`
  --KEY=VALUE        the same, also for a value that begins with `--` or `@`
  --SECTION          switch a section on that is off by default
  --no-KEY           switch off a section, a value that can be off, or a true-or-false
  --show-config      print every value and where it comes from, and exit
  --dry-run          check the recipe and its plugins, write resolved.json, and exit
  --help             print this, and exit

In a file, `"@" = "other.toml"` in a table merges that file beneath the table's own keys,
and `section = "@ other.toml"` is short for a table with nothing else. Paths in a file are
relative to that file, on the command line to the working directory.
"""


def help_text(
    schema: type[Section],
    prog: str,
    summary: str = "",
    *,
    defaults: Mapping[str, Any] = MappingProxyType({}),
) -> str:
    """The help of the command `prog`, whose recipe is a `schema`.

    `summary` says what the command does, `defaults` are what it gives to `compose`.
    """
    summary = summary or " ".join((inspect.getdoc(schema) or "").split())
    usage = _USAGE.format(prog=prog, summary=fill(summary, _WIDTH))
    return "\n".join([usage, *_Keys(OptionSpec(schema), defaults).explain((), schema)])


class _Keys:
    """The help on the keys of `root`."""

    def __init__(self, root: OptionSpec, defaults: Mapping[str, Any]) -> None:
        self._root = root
        self._defaults = defaults
        self._explained: dict[type, Key] = {}

    def explain(self, key: Key, section: type) -> Iterator[str]:
        """The keys of the section at `key`, then the sections in it."""
        self._explained[section] = key
        inner = {(*key, name): shape for name, shape in fields(section).items()}
        for path, shape in inner.items():
            if not shape.section:
                yield self._key(path, shape)
        for path, shape in inner.items():
            if shape.section:
                yield self._heading(path, shape)
                if shape.section in self._explained:
                    yield self._names(path, shape.section)
                else:
                    yield from self.explain(path, shape.section)

    def _heading(self, key: Key, shape: OptionSpec) -> str:
        name = dotted(key)
        text = shape.documentation
        if shape.optional:
            text += (
                f" Can be off; default: {'on' if isinstance(shape.default, Section) else 'off'}."
            )
        rule = "-" * (_WIDTH - len(name) - 3)
        return f"[{name}] {rule}\n{_paragraph(text + self._reach(key), '')}"

    def _key(self, key: Key, shape: OptionSpec) -> str:
        takes = "NAME" + " or off" * shape.optional if shape.kind else describe(shape)
        text = shape.documentation + self._reach(key)
        if shape.kind:
            text += (
                f" Its options: `{flag(key)}.OPTION`, which"
                f" `torchrl-ckpt plugins show {shape.kind} NAME` lists."
            )
        return f"  {flag(key)}  {takes}; {self._default(key, shape)}\n{_paragraph(text, ' ' * 6)}"

    def _names(self, key: Key, section: type) -> str:
        """The keys of a section whose like has been explained."""
        names = ", ".join(flag(path) for path, _ in all_keys(section, key))
        return _paragraph(f"As with {flag(self._explained[section])} above: {names}", "  ")

    def _reach(self, key: Key) -> str:
        if len(key) > 1 or key[0] not in self._root.shared_keys:
            return ""
        sections = [f"`{name}`" for name in self._root.sections_sharing(key[0])]
        return f" Shared: reaches {listed(sections, 'and')}."

    def _default(self, key: Key, shape: OptionSpec) -> str:
        name = key[-1]
        is_shared = len(key) == 2 and key[0] in self._root.sections_sharing(name)
        if name in self._defaults and (len(key) == 1 or is_shared):
            return f"default: {toml(self._defaults[name])}"
        if shape.default is REQUIRED:
            return f"required, here or as `--{name}`" if is_shared else "required"
        if isinstance(shape.default, PluginTable):
            return f"default: {shape.default.type}"
        return f"default: {'unset' if shape.default is None else toml(shape.default)}"


def _paragraph(text: str, indent: str) -> str:
    lines = fill(
        text.strip(),
        _WIDTH,
        initial_indent=indent,
        subsequent_indent=indent,
        break_on_hyphens=False,
        break_long_words=False,
    )
    return f"{lines}\n" if lines else ""
