"""Finds the line of each key in a TOML text, which `tomli` does not report.

The scanner assumes valid TOML: `tomli` has parsed the text before. It knows just enough of the
grammar to skip values. A wrong line would be worse than none, so its result is used only if its
keys are exactly those that `tomli` found.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

import tomli

from torchrl_ckpt.config.option_spec import Key

_BLANK = re.compile(r"(?:[ \t\r\n]|#[^\n]*)*")
_SPACE = re.compile(r"[ \t]*")
_SIMPLE_KEY = r"""(?:[A-Za-z0-9_-]+|"(?:[^"\\\n]|\\.)*"|'[^'\n]*')"""
_KEY = re.compile(rf"{_SIMPLE_KEY}(?:[ \t]*\.[ \t]*{_SIMPLE_KEY})*")
_STRING = re.compile(
    r'''"""(?:\\.|[^\\])*?""""{0,2}|\'\'\'.*?\'\'\'\'{0,2}|"(?:[^"\\\n]|\\.)*"|'[^'\n]*\'''',
    re.DOTALL,
)
_BARE_VALUE = re.compile(r"[^,\]}#\r\n]+")


def key_lines(text: str, document: Mapping[str, Any]) -> dict[Key, int]:
    """Return the line, from 1, of every key outside arrays; nothing if any is in doubt.

    `document` is the result of `tomli` for `text`.
    """
    try:
        lines = _Scanner(text).scan()
    except (_Doubt, tomli.TOMLDecodeError):
        return {}
    return lines if lines.keys() == _keys(document) else {}


def _keys(document: Mapping[str, Any], above: Key = ()) -> set[Key]:
    found = set()
    for name, value in document.items():
        found.add((*above, name))
        if isinstance(value, dict):
            found |= _keys(value, (*above, name))
    return found


class _Doubt(Exception):
    """The text is not as the scanner expects it here."""


class _Scanner:
    def __init__(self, text: str) -> None:
        self._text = text
        self._position = 0
        self._lines: dict[Key, int] = {}
        self._arrays_of_tables: set[Key] = set()

    def scan(self) -> dict[Key, int]:
        table: Key | None = ()
        self._take(_BLANK)
        while self._position < len(self._text):
            if self._next_is("["):
                table = self._header()
            else:
                self._assignment(table)
            self._take(_BLANK)
        return self._lines

    def _header(self) -> Key | None:
        """The table that a `[table]` or `[[table]]` line opens; None inside an array of tables."""
        brackets = 2 if self._next_is("[[") else 1
        self._position += brackets
        self._take(_SPACE)
        start, key = self._key()
        self._take(_SPACE)
        self._expect("]" * brackets)
        if any(key[:length] in self._arrays_of_tables for length in range(1, len(key) + 1)):
            return None
        self._record(start, (), key)
        if brackets == 2:
            self._arrays_of_tables.add(key)
            return None
        return key

    def _assignment(self, table: Key | None) -> None:
        """Scan `key = value`; record its line unless `table` is None."""
        start, key = self._key()
        if table is not None:
            self._record(start, table, key)
        self._take(_SPACE)
        self._expect("=")
        self._take(_SPACE)
        self._value(None if table is None else table + key)

    def _value(self, key: Key | None) -> None:
        """Skip a value; record the keys of an inline table unless `key` is None."""
        if self._next_is("{"):
            self._sequence("}", lambda: self._assignment(key))
        elif self._next_is("["):
            self._sequence("]", lambda: self._value(None))
        elif self._next_is('"') or self._next_is("'"):
            self._take(_STRING)
        else:
            self._take(_BARE_VALUE)

    def _sequence(self, end: str, element: Callable[[], None]) -> None:
        self._position += 1
        self._take(_BLANK)
        while not self._next_is(end):
            element()
            self._take(_BLANK)
            if not self._next_is(end):
                self._expect(",")
                self._take(_BLANK)
        self._expect(end)

    def _key(self) -> tuple[int, Key]:
        start = self._position
        parts: list[str] = []
        found: Any = tomli.loads(f"{self._take(_KEY)} = 0")
        while isinstance(found, dict):
            [(name, found)] = found.items()
            parts.append(name)
        return start, tuple(parts)

    def _record(self, start: int, table: Key, key: Key) -> None:
        line = self._text.count("\n", 0, start) + 1
        for length in range(1, len(key) + 1):
            self._lines.setdefault(table + key[:length], line)

    def _next_is(self, text: str) -> bool:
        return self._text.startswith(text, self._position)

    def _take(self, pattern: re.Pattern[str]) -> str:
        match = pattern.match(self._text, self._position)
        if match is None:
            raise _Doubt
        self._position = match.end()
        return match.group()

    def _expect(self, text: str) -> None:
        if not self._next_is(text):
            raise _Doubt
        self._position += len(text)
