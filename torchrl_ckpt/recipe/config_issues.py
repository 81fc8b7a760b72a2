"""What is wrong with a recipe: all of it in one error, each part with its place."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from itertools import takewhile
from typing import Any

from pydantic import ValidationError

from torchrl_ckpt.config.describe import describe, dotted, flag, toml
from torchrl_ckpt.config.option_spec import Key, OptionSpec
from torchrl_ckpt.plugin_api.errors import RecipeError
from torchrl_ckpt.recipe.compose import Composition
from torchrl_ckpt.recipe.tree import Leaf, Origin


@dataclass(frozen=True)
class ConfigIssue:
    """Something wrong at a key. `origin` is None for what is wrong by not being there."""

    key: Key
    text: str
    origin: Origin | None = None

    def __str__(self) -> str:
        return f"{self.origin}: {self.text}" if self.origin and self.origin.is_given else self.text


def unknown_key(key: Key, origin: Origin, valid: Collection[Key], *, why: str = "") -> ConfigIssue:
    """`key` is none of the `valid` ones; `why` says more than that, where there is more to say."""
    guess = nearest(key, valid)
    hint = f"; did you mean `{_as_at(origin, guess)}`?" if guess else ""
    return ConfigIssue(key, f"unknown key `{dotted(key)}`{why}{hint}", origin)


def recipe_error(problems: Iterable[ConfigIssue]) -> RecipeError:
    """One error for all `problems`.

    What was written once is told once, even if as a shared key it is wrong in every section.
    """
    distinct: dict[object, ConfigIssue] = {}
    for problem in problems:
        place = problem.key if problem.origin is None else (id(problem.origin), problem.key[-1:])
        distinct.setdefault(place, problem)
    texts = [str(problem) for problem in distinct.values()]
    if len(texts) == 1:
        return RecipeError(texts[0])
    lines = "".join(f"\n  {text}" for text in texts)
    return RecipeError(f"{len(texts)} things are wrong with the recipe:{lines}")


def _as_at(origin: Origin, key: Key) -> str:
    """The key as it would be written at `origin`."""
    if origin.place.startswith("--no-"):
        return flag(key).replace("--", "--no-", 1)
    return flag(key) if origin.place.startswith("--") else dotted(key)


_SAID_BY_DESCRIPTION = (
    *("greater_than", "greater_than_equal", "less_than", "less_than_equal"),
    *("literal_error", "int_from_float"),
)


def complaints(
    error: ValidationError, shape: OptionSpec, composition: Composition, above: Key = ()
) -> list[ConfigIssue]:
    """One problem for each key that `error` is about.

    `shape` is that of the table at `above`, which was validated.
    """
    problems: dict[Key, ConfigIssue] = {}
    for detail in error.errors():
        below = _key_of(detail["loc"], shape)
        if (*above, *below) not in problems:
            problems[(*above, *below)] = _problem(detail, shape, composition, above, below)
    return list(problems.values())


def _key_of(location: Sequence[int | str], shape: OptionSpec) -> Key:
    """The part of pydantic's location that is a key; after it come indices and arms of unions."""
    key: Key = ()
    for part in location:
        if not isinstance(part, str) or shape.find((*key, part)) is None:
            break
        key = (*key, part)
    return key


def _problem(
    detail: Any, table: OptionSpec, composition: Composition, above: Key, below: Key
) -> ConfigIssue:
    key, kind = (*above, *below), detail["type"]
    shape, node = table.find(below), composition.node((*above, *below))
    origin = node.origin if node else None
    inside = ".".join(map(str, detail["loc"][len(below) :]))
    assert shape
    if kind == "missing" and not inside:
        return ConfigIssue(key, _missing(key, shape, table if not above else None))
    if kind in ("value_error", "assertion_error"):
        reason = str(detail["ctx"]["error"])
        return ConfigIssue(key, f"`{dotted(key)}`: {reason}" if key else reason, origin)
    given = toml(node.value) if isinstance(node, Leaf) else "a table"
    text = f"`{dotted(key)}` is {given}; expected {describe(shape)}"
    if not (kind in _SAID_BY_DESCRIPTION or kind.endswith(("_type", "_parsing"))):
        text += f" (at {inside}: {detail['msg']})" if inside else f" ({detail['msg']})"
    return ConfigIssue(key, text, origin)


def _missing(key: Key, shape: OptionSpec, root: OptionSpec | None) -> str:
    """How to give a key that is missing, for a shared one at the root."""
    missing = key
    if root and len(key) == 2 and key[0] in root.sections_sharing(key[1]):
        key = key[-1:]
    return (
        f"`{dotted(missing)}` is missing: write `{dotted(key)} = ...` in a recipe"
        f" or give `{flag(key)} ...` ({describe(shape)})"
    )


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
