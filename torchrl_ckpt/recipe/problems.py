"""What is wrong with a recipe: all of it in one error, each part with its place."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass

from torchrl_ckpt.errors import RecipeError
from torchrl_ckpt.recipe.origin import DEFAULT, Origin
from torchrl_ckpt.recipe.suggestions import nearest
from torchrl_ckpt.recipe.tree import Key


@dataclass(frozen=True)
class Problem:
    """Something wrong at a key. `origin` is None for what is wrong by not being there."""

    key: Key
    text: str
    origin: Origin | None = None

    def __str__(self) -> str:
        return self.text if self.origin in (None, DEFAULT) else f"{self.origin}: {self.text}"


def unknown_key(key: Key, origin: Origin, valid: Collection[Key], *, why: str = "") -> Problem:
    """`key` is none of the `valid` ones; `why` says more than that, where there is more to say."""
    guess = nearest(key, valid)
    is_flag = origin.place.startswith("--")
    hint = f"; did you mean `{flag(guess) if is_flag else dotted(guess)}`?" if guess else ""
    return Problem(key, f"unknown key `{dotted(key)}`{why}{hint}", origin)


def raise_if_any(problems: Iterable[Problem]) -> None:
    """Raise them all as one `RecipeError`.

    What was written once is reported once, even if as a shared key it is wrong in every section.
    """
    distinct: dict[object, Problem] = {}
    for problem in problems:
        place = problem.key if problem.origin is None else (id(problem.origin), problem.key[-1:])
        distinct.setdefault(place, problem)
    texts = [str(problem) for problem in distinct.values()]
    if len(texts) == 1:
        raise RecipeError(texts[0])
    if texts:
        lines = "".join(f"\n  {text}" for text in texts)
        raise RecipeError(f"{len(texts)} things are wrong with the recipe:{lines}")


def dotted(key: Key) -> str:
    """A key as it is written in a message and in TOML."""
    return ".".join(key)


def flag(key: Key) -> str:
    """A key as it is written on the command line."""
    return "--" + dotted(key).replace("_", "-")
