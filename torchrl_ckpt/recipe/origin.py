"""Where a value of the recipe was written."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Origin:
    """The place of a value, for messages, and what a relative path in it is relative to.

    `place` is `recipes/reverse/train.toml:7`, or a flag as it was typed, or `default`; `via` are
    the files that included that file, the nearest first. `base` is None where a relative path
    stays as it is.
    """

    place: str
    base: Path | None = None
    via: tuple[str, ...] = ()

    @property
    def is_given(self) -> bool:
        """Whether a user wrote it, in a file or on the command line."""
        return self.place != DEFAULT.place

    def __str__(self) -> str:
        return ", via ".join((self.place, *self.via))


DEFAULT = Origin("default")
"""The origin of what the schema itself says."""


def display(path: Path) -> str:
    """`path` as a user would type it: relative where it lies below the working directory."""
    relative = os.path.relpath(path)
    return str(path) if relative.startswith("..") else relative
