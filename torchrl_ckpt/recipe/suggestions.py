"""The valid key that a misspelt one was probably meant to be."""

from __future__ import annotations

from collections.abc import Collection
from difflib import get_close_matches
from itertools import takewhile

from torchrl_ckpt.recipe.tree import Key


def nearest(key: Key, valid: Collection[Key]) -> Key | None:
    """One of the `valid` keys: the same name elsewhere, a similar one here, or one elsewhere."""
    name, above = key[-1], key[:-1]
    siblings = {other[-1] for other in valid if other[:-1] == above}
    names = {other[-1] for other in valid}
    if name in names:
        return _closest(key, name, valid)
    if match := get_close_matches(name, siblings, n=1):
        return (*above, match[0])
    if match := get_close_matches(name, names, n=1):
        return _closest(key, match[0], valid)
    return None


def _closest(key: Key, name: str, valid: Collection[Key]) -> Key:
    """Of the keys that end in `name` the one that shares most of its way with `key`."""
    return min(
        (other for other in valid if other[-1] == name),
        key=lambda other: (-_common_parts(key, other), len(other), other),
    )


def _common_parts(one: Key, other: Key) -> int:
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(one, other, strict=False)))
