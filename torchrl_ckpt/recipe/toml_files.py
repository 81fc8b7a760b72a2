"""Recipe files: read, and laid out as layers with their `@` includes expanded."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import reduce
from itertools import count
from pathlib import Path
from typing import Any

import tomli

from torchrl_ckpt.config.option_spec import Key, OptionSpec
from torchrl_ckpt.plugin_api.errors import RecipeError
from torchrl_ckpt.recipe.normalize import node_of
from torchrl_ckpt.recipe.toml_lines import key_lines
from torchrl_ckpt.recipe.tree import Node, Origin, Table, display, merge

INCLUDE = "@"

# More than any recipe needs; files that include others twice are expanded again and again.
_MAX_BYTES = 4 * 1024 * 1024
_MAX_DEPTH = 50
_MAX_INCLUDES = 1000


@dataclass(frozen=True)
class Include:
    """A request to merge the file `path` at the key `at`.

    `requested_by` says where the request is written, for messages; `parent` is the include of the
    file that holds it.
    """

    path: Path
    at: Key
    requested_by: str
    parent: Include | None = None
    numbers: Iterator[int] = field(default_factory=count, repr=False, compare=False)
    """Counts all includes of the outermost file."""

    @property
    def chain(self) -> list[Include]:
        """This include and those that led to it, the outermost first."""
        return [*(self.parent.chain if self.parent else []), self]


@dataclass(frozen=True)
class Layer:
    """A table of a recipe file, to be merged at the key `at`."""

    at: Key
    tree: Table


def file_layers(include: Include, root: OptionSpec) -> Iterator[Layer]:
    """Yield the layers of a file and of what it includes, each beating those before it.

    What the recipe's root or one of its sections includes is a layer of its own, below the file's
    keys, so that a shared key of this file beats it. Every other include is expanded in its table:
    a shared key is handed down whole, wherever its parts are written. Raises `RecipeError` for a
    file that cannot be read and for includes in a circle, too deep or too many.
    """
    _refuse_endless(include)
    text, document = _read(include)
    reader = _Reader(include, root, key_lines(text, document))
    tree = reader.table(document, (), root.find(include.at))
    for inner in reader.layered_includes:
        yield from file_layers(inner, root)
    yield Layer(include.at, tree)


class _Reader:
    """Makes a tree of one file, and a list of the includes that are layers of their own."""

    def __init__(self, include: Include, root: OptionSpec, lines: Mapping[Key, int]) -> None:
        self._include = include
        self._root = root
        self._lines = lines
        self._name = display(include.path)
        self._via = tuple(display(outer.path) for outer in reversed(include.chain[:-1]))
        self.layered_includes: list[Include] = []

    def table(self, table: dict[str, Any], key: Key, spec: OptionSpec | None) -> Table:
        """The table at `key` of this file, above what it includes."""
        includes = self._includes(table[INCLUDE], key, (*key, INCLUDE)) if INCLUDE in table else []
        beneath = self._expand(includes, key)
        entries = {
            name: self._node(value, (*key, name), spec and spec.child(name))
            for name, value in table.items()
            if name != INCLUDE
        }
        return reduce(merge, [*beneath, Table(entries, self._origin(key))])

    def _node(self, value: Any, key: Key, spec: OptionSpec | None) -> Node:
        if isinstance(value, dict):
            return self.table(value, key, spec)
        if spec and spec.is_table and isinstance(value, str) and value.startswith(INCLUDE):
            includes = self._includes(value.removeprefix(INCLUDE).strip(), key, key)
            return reduce(merge, [*self._expand(includes, key), Table({}, self._origin(key))])
        return node_of(value, spec, self._origin(key))

    def _includes(self, value: Any, at: Key, written_at: Key) -> list[Include]:
        """The includes that `value`, written at the key `written_at`, requests for the key `at`."""
        names = value if isinstance(value, list) else [value]
        location = self._origin(written_at).location
        if not all(isinstance(name, str) and name for name in names):
            raise RecipeError(f'{location}: "@" takes the name of a file or a list of names')
        directory = self._include.path.parent
        return [
            Include(
                path=Path(os.path.abspath(directory / name)),
                at=self._include.at + at,
                requested_by=f"{location} includes `{name}`",
                parent=self._include,
                numbers=self._include.numbers,
            )
            for name in names
        ]

    def _expand(self, includes: list[Include], key: Key) -> list[Table]:
        """What `includes` bring into the table at `key`; nothing if they are layers instead."""
        if self._is_layered(self._include.at + key):
            self.layered_includes += includes
            return []
        return [layer.tree for include in includes for layer in file_layers(include, self._root)]

    def _is_layered(self, key: Key) -> bool:
        """Whether `key` is the recipe's root or one of its sections."""
        return not key or (len(key) == 1 and key[0] not in self._root.shared_keys)

    def _origin(self, key: Key) -> Origin:
        line = self._lines.get(key)
        location = self._name if line is None else f"{self._name}:{line}"
        return Origin(location, self._include.path.parent, self._via)


def _read(include: Include) -> tuple[str, dict[str, Any]]:
    """The text of the file, and its TOML document."""
    path = include.path
    try:
        with open(path, "rb") as file:
            content = file.read(_MAX_BYTES + 1)
        if len(content) > _MAX_BYTES:
            raise RecipeError(f"{display(path)}: a recipe has at most {_MAX_BYTES} bytes")
        text = content.decode()
        return text, tomli.loads(text)
    except tomli.TOMLDecodeError as error:
        location = f"{display(path)}:{error.lineno}"
        raise RecipeError(f"{location}: not valid TOML: {error.msg}") from None
    except RecursionError:
        raise RecipeError(f"{display(path)}: its arrays or tables are nested too deep") from None
    except FileNotFoundError:
        reason = f"there is no file `{display(path)}`"
    except IsADirectoryError:
        reason = f"`{display(path)}` is a directory, not a TOML file"
    except UnicodeDecodeError:
        reason = f"`{display(path)}` is not a TOML file: it is not UTF-8 text"
    except OSError as error:
        reason = f"`{display(path)}` cannot be read: {error.strerror}"
    raise RecipeError(f"{include.requested_by}: {reason}")


def _refuse_endless(include: Include) -> None:
    chain = include.chain
    if next(include.numbers) >= _MAX_INCLUDES:
        raise RecipeError(f"{include.requested_by}: that is the include number {_MAX_INCLUDES + 1}")
    files = [os.path.realpath(link.path) for link in chain]
    if files[-1] in files[:-1]:
        links = chain[files.index(files[-1]) + 1 :]
        steps = "".join(f"\n  {link.requested_by}" for link in links)
        raise RecipeError(f"recipes include each other in a circle:{steps}")
    if len(chain) > _MAX_DEPTH:
        raise RecipeError(f"{include.requested_by}, {_MAX_DEPTH} files deep: that is too deep")
