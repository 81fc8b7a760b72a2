"""What is wrong with a recipe: all of it in one error, each part with its place."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass

from torchrl_ckpt.errors import RecipeError
from torchrl_ckpt.recipe.origin import Origin
from torchrl_ckpt.recipe.suggestions import nearest
from torchrl_ckpt.recipe.tree import Key
from torchrl_ckpt.recipe.words import toml_key


@dataclass(frozen=True)
class Problem:
    """Something wrong at a key. `origin` is None for what is wrong by not being there."""

    key: Key
    text: str
    origin: Origin | None = None

    def __str__(self) -> str:
        return f"{self.origin}: {self.text}" if self.origin and self.origin.is_given else self.text


def unknown_key(key: Key, origin: Origin, valid: Collection[Key], *, why: str = "") -> Problem:
    """`key` is none of the `valid` ones; `why` says more than that, where there is more to say."""
    guess = nearest(key, valid)
    hint = f"; did you mean `{_as_at(origin, guess)}`?" if guess else ""
    return Problem(key, f"unknown key `{dotted(key)}`{why}{hint}", origin)


def recipe_error(problems: Iterable[Problem]) -> RecipeError:
    """One error for all `problems`.

    What was written once is told once, even if as a shared key it is wrong in every section.
    """
    distinct: dict[object, Problem] = {}
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


def dotted(key: Key) -> str:
    """A key as it is written in a message and in TOML."""
    return ".".join(map(toml_key, key))


def flag(key: Key) -> str:
    """A key as it is written on the command line."""
    return "--" + dotted(key).replace("_", "-")
