"""Pydantic's complaints about a recipe, told in the recipe's own terms."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pydantic import ValidationError

from torchrl_ckpt.recipe.composition import Composition
from torchrl_ckpt.recipe.problems import Problem, dotted, flag
from torchrl_ckpt.recipe.shape import Shape
from torchrl_ckpt.recipe.shared import sections_sharing
from torchrl_ckpt.recipe.tree import Key, Leaf
from torchrl_ckpt.recipe.words import describe, toml

_SAID_BY_DESCRIPTION = (
    *("greater_than", "greater_than_equal", "less_than", "less_than_equal"),
    *("literal_error", "int_from_float"),
)


def complaints(
    error: ValidationError, shape: Shape, composition: Composition, above: Key = ()
) -> list[Problem]:
    """One problem for each key that `error` is about.

    `shape` is that of the table at `above`, which was validated.
    """
    problems: dict[Key, Problem] = {}
    for detail in error.errors():
        below = _key_of(detail["loc"], shape)
        if (*above, *below) not in problems:
            problems[(*above, *below)] = _problem(detail, shape, composition, above, below)
    return list(problems.values())


def _key_of(location: Sequence[int | str], shape: Shape) -> Key:
    """The part of pydantic's location that is a key; after it come indices and arms of unions."""
    key: Key = ()
    for part in location:
        if not isinstance(part, str) or shape.find((*key, part)) is None:
            break
        key = (*key, part)
    return key


def _problem(
    detail: Any, table: Shape, composition: Composition, above: Key, below: Key
) -> Problem:
    key, kind = (*above, *below), detail["type"]
    shape, node = table.find(below), composition.node((*above, *below))
    origin = node.origin if node else None
    inside = ".".join(map(str, detail["loc"][len(below) :]))
    assert shape
    if kind == "missing" and not inside:
        return Problem(key, _missing(key, shape, table if not above else None))
    if kind in ("value_error", "assertion_error"):
        reason = str(detail["ctx"]["error"])
        return Problem(key, f"`{dotted(key)}`: {reason}" if key else reason, origin)
    given = toml(node.value) if isinstance(node, Leaf) else "a table"
    text = f"`{dotted(key)}` is {given}; expected {describe(shape)}"
    if not (kind in _SAID_BY_DESCRIPTION or kind.endswith(("_type", "_parsing"))):
        text += f" (at {inside}: {detail['msg']})" if inside else f" ({detail['msg']})"
    return Problem(key, text, origin)


def _missing(key: Key, shape: Shape, root: Shape | None) -> str:
    """How to give a key that is missing, for a shared one at the root."""
    missing = key
    if root and len(key) == 2 and key[0] in sections_sharing(root, key[1]):
        key = key[-1:]
    return (
        f"`{dotted(missing)}` is missing: write `{dotted(key)} = ...` in a recipe"
        f" or give `{flag(key)} ...` ({describe(shape)})"
    )
