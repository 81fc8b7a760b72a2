"""Suggestions for misspelt names in error messages."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def similar_name(name: str, known: Iterable[str]) -> str | None:
    """Return the one of the `known` names that is most like `name`; None if none is like it."""
    matches = difflib.get_close_matches(name, list(known), n=1)
    return matches[0] if matches else None


def did_you_mean(guess: str | None) -> str:
    """Return `; did you mean ...?` to end a message with, or nothing without a guess."""
    return f"; did you mean `{guess}`?" if guess else ""
