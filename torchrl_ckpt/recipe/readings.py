"""What the words behind a flag can mean, and which of it the schema wants."""

from __future__ import annotations

import datetime
from collections.abc import Sequence
from typing import Any

import tomli

from torchrl_ckpt.recipe.shape import Shape
from torchrl_ckpt.recipe.tree import Leaf


def readings(words: Sequence[str]) -> list[Any]:
    """The likeliest first: a TOML value, the text itself, a list."""
    literals = [literal(word) for word in words]
    lists: list[Any] = [literals, list(words)]
    return lists if len(words) > 1 else [literals[0], words[0], *lists]


def literal(word: str) -> Any:
    """The word as a TOML value, or as the text that it is."""
    try:
        document = tomli.loads(f"value = {word}")
    except tomli.TOMLDecodeError:
        return word
    value = document.pop("value")
    is_date = isinstance(value, datetime.date | datetime.time)
    return word if document or is_date else value


def fitting(leaf: Leaf, shape: Shape) -> Any:
    """The first reading that fits. `false` is off where the type itself knows no `false`."""
    value = leaf.value
    if leaf.readings and not shape.accepts(value):
        value = next(filter(shape.accepts, leaf.readings), value)
    return None if value is False and shape.optional and not shape.accepts(False) else value
