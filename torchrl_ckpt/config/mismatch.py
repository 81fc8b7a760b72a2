"""Pydantic's validation errors in plain words."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from torchrl_ckpt.config.describe import describe, dotted
from torchrl_ckpt.config.option_spec import Key, OptionSpec

_COVERED_BY_DESCRIPTION = (
    *("greater_than", "greater_than_equal", "less_than", "less_than_equal"),
    *("literal_error", "int_from_float"),
)
_COVERED_BY_DESCRIPTION_ENDS = ("_type", "_parsing")


@dataclass(frozen=True)
class Mismatch:
    """A key of a table whose value does not fit its spec."""

    key: Key
    """The key below the table that was validated."""

    spec: OptionSpec

    is_missing: bool

    reason: str | None
    """What a validator of the schema says about the value; None if the type alone is wrong."""

    detail: str
    """What pydantic says beyond the description of the type."""

    def text(self, key: Key, given: str) -> str:
        """Say what is wrong with the value, written `given`, of a key written as `key`."""
        if self.reason is not None:
            return f"`{dotted(key)}`: {self.reason}" if key else self.reason
        return f"`{dotted(key)}` is {given}; expected {describe(self.spec)}{self.detail}"


def mismatches(error: ValidationError, table: OptionSpec) -> list[Mismatch]:
    """One mismatch for each key that `error` is about, the first that pydantic found.

    `table` is the spec of the table that was validated.
    """
    found: dict[Key, Mismatch] = {}
    for detail in error.errors():
        key = _key_of(detail["loc"], table)
        if key not in found:
            found[key] = _mismatch(detail, key, table)
    return list(found.values())


def _mismatch(detail: Any, key: Key, table: OptionSpec) -> Mismatch:
    spec, kind = table.find(key), detail["type"]
    assert spec is not None
    inside = ".".join(map(str, detail["loc"][len(key) :]))
    reason = str(detail["ctx"]["error"]) if kind in ("value_error", "assertion_error") else None
    if kind in _COVERED_BY_DESCRIPTION or kind.endswith(_COVERED_BY_DESCRIPTION_ENDS):
        more = ""
    else:
        more = f" (at {inside}: {detail['msg']})" if inside else f" ({detail['msg']})"
    return Mismatch(key, spec, kind == "missing" and not inside, reason, more)


def _key_of(location: Sequence[int | str], table: OptionSpec) -> Key:
    """The part of pydantic's location that is a key; after it come indices and arms of unions."""
    key: Key = ()
    for part in location:
        if not isinstance(part, str) or table.find((*key, part)) is None:
            break
        key = (*key, part)
    return key
