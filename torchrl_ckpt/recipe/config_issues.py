"""What is wrong with a recipe: all of it in one error, each issue with its place."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from itertools import takewhile

from pydantic import ValidationError

from torchrl_ckpt.config.describe import describe, dotted, flag, toml
from torchrl_ckpt.config.mismatch import mismatches
from torchrl_ckpt.config.option_spec import Key, OptionSpec
from torchrl_ckpt.plugin_api.errors import RecipeError
from torchrl_ckpt.plugin_api.similar_names import did_you_mean, similar_name
from torchrl_ckpt.recipe.compose import Composition
from torchrl_ckpt.recipe.tree import Leaf, Origin


@dataclass(frozen=True)
class ConfigIssue:
    """Something wrong at a key. `origin` is None for a key that is missing."""

    key: Key
    text: str
    origin: Origin | None = None

    def __str__(self) -> str:
        return f"{self.origin}: {self.text}" if self.origin and self.origin.is_given else self.text


def recipe_error(issues: Iterable[ConfigIssue]) -> RecipeError:
    """One error for all `issues`.

    A shared key that is wrong in every section is reported once, for the place that gives it.
    """
    distinct: dict[object, ConfigIssue] = {}
    for issue in issues:
        identity = issue.key if issue.origin is None else (id(issue.origin), issue.key[-1:])
        distinct.setdefault(identity, issue)
    texts = [str(issue) for issue in distinct.values()]
    if len(texts) == 1:
        return RecipeError(texts[0])
    lines = "".join(f"\n  {text}" for text in texts)
    return RecipeError(f"{len(texts)} things are wrong with the recipe:{lines}")


def unknown_key(key: Key, origin: Origin, valid: Collection[Key], *, why: str = "") -> ConfigIssue:
    """The issue that `key` is none of the `valid` ones; `why` is added to the message."""
    guess = nearest_key(key, valid)
    hint = did_you_mean(None if guess is None else _spelled_as_at(origin, guess))
    return ConfigIssue(key, f"unknown key `{dotted(key)}`{why}{hint}", origin)


def unfit_values(
    error: ValidationError, table: OptionSpec, composition: Composition, above: Key = ()
) -> list[ConfigIssue]:
    """One issue for each key that `error` is about.

    `table` is the spec of the table at `above`, which was validated.
    """
    issues = []
    for mismatch in mismatches(error, table):
        key = (*above, *mismatch.key)
        if mismatch.is_missing:
            text = _missing(key, mismatch.spec, None if above else table)
            issues.append(ConfigIssue(key, text))
        else:
            node = composition.node(key)
            given = toml(node.value) if isinstance(node, Leaf) else "a table"
            text = mismatch.text(key, given)
            issues.append(ConfigIssue(key, text, node.origin if node else None))
    return issues


def nearest_key(key: Key, valid: Collection[Key]) -> Key | None:
    """One of the `valid` keys: the same name elsewhere, a similar one here, or one elsewhere."""
    name, above = key[-1], key[:-1]
    names = {other[-1] for other in valid}
    if name in names:
        return _closest(key, name, valid)
    siblings = {other[-1] for other in valid if other[:-1] == above}
    if sibling := similar_name(name, siblings):
        return (*above, sibling)
    if similar := similar_name(name, names):
        return _closest(key, similar, valid)
    return None


def _missing(key: Key, spec: OptionSpec, root: OptionSpec | None) -> str:
    """Say how to give a missing key: a shared one at the root."""
    is_shared = root is not None and len(key) == 2 and key[0] in root.sections_sharing(key[1])
    written = key[-1:] if is_shared else key
    return (
        f"`{dotted(key)}` is missing: write `{dotted(written)} = ...` in a recipe"
        f" or give `{flag(written)} ...` ({describe(spec)})"
    )


def _spelled_as_at(origin: Origin, key: Key) -> str:
    """The key as it would be written at `origin`: as a flag, a `--no-` flag or in TOML."""
    if origin.flag.startswith("--no-"):
        return flag(key).replace("--", "--no-", 1)
    return flag(key) if origin.flag else dotted(key)


def _closest(key: Key, name: str, valid: Collection[Key]) -> Key:
    """Of the keys that end in `name` the one that has most sections in common with `key`."""
    return min(
        (other for other in valid if other[-1] == name),
        key=lambda other: (-_num_common_parts(key, other), len(other), other),
    )


def _num_common_parts(left: Key, right: Key) -> int:
    pairs = zip(left, right, strict=False)
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))
