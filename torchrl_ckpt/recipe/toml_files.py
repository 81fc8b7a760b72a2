"""Recipe files: read, their `@` includes followed, and laid out as a series of layers."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tomli

from torchrl_ckpt.config.option_spec import Key, OptionSpec
from torchrl_ckpt.plugin_api.errors import RecipeError
from torchrl_ckpt.recipe.normalize import node_of
from torchrl_ckpt.recipe.toml_lines import key_lines
from torchrl_ckpt.recipe.tree import Node, Origin, Table, display

INCLUDE = "@"


@dataclass(frozen=True)
class Include:
    """The wish to merge the file `path` at the key `at`.

    `asked_by` is the place of the wish, `parent` the include of the file that it stands in.
    """

    path: Path
    at: Key
    asked_by: str
    parent: Include | None = None

    @property
    def chain(self) -> list[Include]:
        """This include and those that led to it, the outermost first."""
        return [*(self.parent.chain if self.parent else []), self]


@dataclass(frozen=True)
class Layer:
    """The own keys of one file, to be merged at the key `at`."""

    at: Key
    tree: Table


def file_layers(include: Include, root: OptionSpec) -> Iterator[Layer]:
    """What the file includes, depth first, then its own keys: each layer beats those before it."""
    _refuse_cycle(include)
    text, document = _read(include)
    reader = _Reader(include, key_lines(text, document))
    tree = reader.table(document, (), root.find(include.at))
    for inner in reader.includes:
        yield from file_layers(inner, root)
    yield Layer(include.at, tree)


class _Reader:
    """Turns one file into a tree of its own keys and a list of its includes."""

    def __init__(self, include: Include, lines: Mapping[Key, int]) -> None:
        self._include = include
        self._lines = lines
        self._name = display(include.path)
        self._via = tuple(display(outer.path) for outer in reversed(include.chain[:-1]))
        self.includes: list[Include] = []

    def table(self, table: dict[str, Any], key: Key, shape: OptionSpec | None) -> Table:
        """The table at `key` of this file. Its includes are noted before those of its tables."""
        if INCLUDE in table:
            self._note_includes(table[INCLUDE], key, (*key, INCLUDE))
        entries = {
            name: self._node(value, (*key, name), shape and shape.child(name))
            for name, value in table.items()
            if name != INCLUDE
        }
        return Table(entries, self._origin(key))

    def _node(self, value: Any, key: Key, shape: OptionSpec | None) -> Node:
        if isinstance(value, dict):
            return self.table(value, key, shape)
        if shape and shape.is_table and isinstance(value, str) and value.startswith(INCLUDE):
            self._note_includes(value.removeprefix(INCLUDE).strip(), key, key)
            return Table({}, self._origin(key))
        return node_of(value, shape, self._origin(key))

    def _note_includes(self, value: Any, at: Key, written_at: Key) -> None:
        names = value if isinstance(value, list) else [value]
        place = self._origin(written_at).place
        if not all(isinstance(name, str) and name for name in names):
            raise RecipeError(f'{place}: "@" takes the name of a file or a list of names')
        for name in names:
            path = Path(os.path.abspath(self._include.path.parent / name))
            asked_by = f"{place} includes `{name}`"
            self.includes.append(Include(path, self._include.at + at, asked_by, self._include))

    def _origin(self, key: Key) -> Origin:
        line = self._lines.get(key)
        place = self._name if line is None else f"{self._name}:{line}"
        return Origin(place, self._include.path.parent, self._via)


def _read(include: Include) -> tuple[str, dict[str, Any]]:
    """The text of the file, and what it holds."""
    path = include.path
    try:
        text = path.read_bytes().decode()
        return text, tomli.loads(text)
    except tomli.TOMLDecodeError as error:
        place = f"{display(path)}:{error.lineno}"
        raise RecipeError(f"{place}: not valid TOML: {error.msg}") from None
    except FileNotFoundError:
        problem = f"there is no file `{display(path)}`"
    except IsADirectoryError:
        problem = f"`{display(path)}` is a directory, not a TOML file"
    except UnicodeDecodeError:
        problem = f"`{display(path)}` is not a TOML file: it is not UTF-8 text"
    except OSError as error:
        problem = f"`{display(path)}` cannot be read: {error.strerror}"
    raise RecipeError(f"{include.asked_by}: {problem}")


def _refuse_cycle(include: Include) -> None:
    chain = include.chain
    files = [os.path.realpath(link.path) for link in chain]
    if files[-1] in files[:-1]:
        links = chain[files.index(files[-1]) + 1 :]
        steps = "".join(f"\n  {link.asked_by}" for link in links)
        raise RecipeError(f"recipes include each other in a circle:{steps}")
