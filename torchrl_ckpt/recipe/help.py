"""`--help` of a command that takes a recipe: every key with its type, default and meaning."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from textwrap import fill
from types import MappingProxyType
from typing import Any

from torchrl_ckpt.config.describe import default_text, describe, dotted, flag, listed, toml
from torchrl_ckpt.config.option_spec import REQUIRED, Key, OptionSpec, all_keys, fields
from torchrl_ckpt.config.section import Section

_WIDTH = 88

_USAGE = """\
usage: {prog} [@ FILE] [--SECTION @ FILE] [--KEY VALUE] ...

{summary}

A recipe is a TOML file. Each of its keys is also a flag, and flags beat files.

  @ FILE             merge a recipe; of several, a later one beats an earlier one
  --SECTION @ FILE   merge a file into a section
  --KEY VALUE        set a key; `-` and `_` in its name are equal; lists: `[1, 2]` or `1 2`
  --KEY=VALUE        the same, also for a value that begins with `--` or `@`
  --SECTION          switch on a section that is off by default
  --no-KEY           switch off a section, a boolean, or a value that can be off
  --show-config      print every value and where it comes from, and exit
  --dry-run          check recipe, plugins, data and checkpoint, write dry_run.json, and exit
  --help             print this help, and exit

In a file, `"@" = "other.toml"` in a table merges that file below the table's own keys, and
`section = "@ other.toml"` is short for a table with nothing else. A path in a file is
relative to that file, a path on the command line to the working directory.
"""


def help_text(
    schema: type[Section],
    prog: str,
    summary: str = "",
    *,
    defaults: Mapping[str, Any] = MappingProxyType({}),
) -> str:
    """Return the help of the command `prog`, whose recipe is a `schema`.

    `summary` says what the command does, `defaults` are the values that it gives to `compose`.
    """
    summary = summary or " ".join((inspect.getdoc(schema) or "").split())
    usage = _USAGE.format(prog=prog, summary=fill(summary, _WIDTH))
    return "\n".join([usage, *_KeyHelp(OptionSpec(schema), defaults).section((), schema)])


class _KeyHelp:
    """The help on the keys of `root`."""

    def __init__(self, root: OptionSpec, defaults: Mapping[str, Any]) -> None:
        self._root = root
        self._defaults = defaults
        self._explained: dict[type, Key] = {}

    def section(self, key: Key, section: type) -> Iterator[str]:
        """The keys of the section at `key`, then the sections in it."""
        self._explained[section] = key
        inner = {(*key, name): spec for name, spec in fields(section).items()}
        for path, spec in inner.items():
            if not spec.section:
                yield self._key(path, spec)
        for path, spec in inner.items():
            if spec.section:
                yield self._heading(path, spec)
                if spec.section in self._explained:
                    yield self._reference(path, spec.section)
                else:
                    yield from self.section(path, spec.section)

    def _heading(self, key: Key, spec: OptionSpec) -> str:
        name = dotted(key)
        text = spec.documentation
        if spec.optional:
            text += f" Can be off; default: {'on' if isinstance(spec.default, Section) else 'off'}."
        rule = "-" * (_WIDTH - len(name) - 3)
        return f"[{name}] {rule}\n{_paragraph(text + self._sections(key), '')}"

    def _key(self, key: Key, spec: OptionSpec) -> str:
        takes = "NAME" + " or off" * spec.optional if spec.kind else describe(spec)
        text = spec.documentation + self._sections(key)
        if spec.kind:
            text += (
                f" Its options: `{flag(key)}.OPTION`, listed by"
                f" `torchrl-ckpt plugins show {spec.kind} NAME`."
            )
        return f"  {flag(key)}  {takes}; {self._default(key, spec)}\n{_paragraph(text, ' ' * 6)}"

    def _reference(self, key: Key, section: type) -> str:
        """The names of the keys of a section that is explained elsewhere."""
        names = ", ".join(flag(path) for path, _ in all_keys(section, key))
        return _paragraph(f"As {flag(self._explained[section])} above: {names}", "  ")

    def _sections(self, key: Key) -> str:
        """The sections that a shared key reaches; nothing for other keys."""
        if len(key) > 1 or key[0] not in self._root.shared_keys:
            return ""
        sections = [f"`{name}`" for name in self._root.sections_sharing(key[0])]
        return f" Shared: applies to {listed(sections, 'and')}."

    def _default(self, key: Key, spec: OptionSpec) -> str:
        name = key[-1]
        is_shared = len(key) == 2 and key[0] in self._root.sections_sharing(name)
        if name in self._defaults and (len(key) == 1 or is_shared):
            return f"default: {toml(self._defaults[name])}"
        if spec.default is REQUIRED:
            return f"required, here or as `--{name}`" if is_shared else "required"
        return f"default: {default_text(spec)}"


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
