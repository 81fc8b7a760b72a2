"""Hypothesis strategies for files and requests that somebody else made, and two profiles.

The default run draws the same few examples each time. `--hypothesis-profile=long`, which
`./run_tests.sh --all` adds, draws many. Inputs that were found to break something are kept as
`@example`.
"""

from __future__ import annotations

import copy
import pickletools
from itertools import pairwise
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

SHORT = "short"

_SHARED: dict[str, Any] = {
    "derandomize": True,
    "database": None,
    "deadline": None,  # `bounded` measures the whole test: a busy machine is slow at times.
    "suppress_health_check": list(HealthCheck),
}

settings.register_profile(SHORT, max_examples=30, **_SHARED)
settings.register_profile("long", max_examples=600, **_SHARED)


def _nested(depth: int) -> list[Any]:
    value: list[Any] = []
    for _ in range(depth):
        value = [value]
    return value


NUMBERS = st.one_of(
    st.integers(),
    st.sampled_from([0, -1, 2**31, 2**63, 2**64, 10**400, -(10**30)]),
    st.floats(),
)
TEXTS = st.one_of(
    st.text(st.characters(exclude_categories=()), max_size=20),  # lone surrogates, too
    st.sampled_from(["", "..", "../../x", "/dev/zero", "a\0b", "\ud800", "x" * 5000, "NaN"]),
)
ODD_VALUES = st.one_of(
    st.none(),
    st.booleans(),
    NUMBERS,
    TEXTS,
    st.sampled_from([[], {}, [None], [[]], {"": None}]).map(copy.deepcopy),
    st.builds(_nested, st.sampled_from([3, 100, 900])),
)
"""What JSON may hold where something else is expected."""

JSON_VALUES = st.recursive(
    ODD_VALUES,
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(TEXTS, inner, max_size=4)),
    max_leaves=8,
)


@st.composite
def mutated_json(draw: st.DrawFn, original: Any) -> Any:
    """A copy of `original`, in which one to three values are replaced, removed or doubled."""
    value = copy.deepcopy(original)
    for _ in range(draw(st.integers(1, 3))):
        value = _mutate(draw, value)
    return value


def _mutate(draw: st.DrawFn, value: Any) -> Any:
    """Change something below `value`, deeper rather than higher."""
    if not isinstance(value, dict | list) or not value:
        return draw(ODD_VALUES)
    keys = list(value) if isinstance(value, dict) else list(range(len(value)))
    key: Any = draw(st.sampled_from(keys))
    match draw(st.sampled_from(["deeper"] * 6 + ["replace", "remove", "add"])):
        case "deeper":
            value[key] = _mutate(draw, value[key])
        case "replace":
            value[key] = draw(JSON_VALUES)
        case "remove":
            del value[key]
        case "add" if isinstance(value, dict):
            value[draw(TEXTS)] = draw(ODD_VALUES)
        case _:
            value.append(draw(ODD_VALUES))
    return value


@st.composite
def mutated_bytes(draw: st.DrawFn, original: bytes) -> bytes:
    """`original` cut, lengthened, or with a stretch replaced."""
    begin = draw(st.integers(0, len(original)))
    end = min(len(original), begin + draw(st.integers(0, 16)))
    rest = original[end:] if draw(st.booleans()) else b""
    return original[:begin] + draw(st.binary(max_size=16)) + rest


@st.composite
def mutated_pickle(draw: st.DrawFn, original: bytes) -> bytes:
    """A pickle whose opcodes are removed, doubled, exchanged or taken from elsewhere in it."""
    positions = [position for _, _, position in pickletools.genops(original)]
    bounds = [*positions, len(original)]
    codes = [original[a:b] for a, b in pairwise(bounds)]
    for _ in range(draw(st.integers(1, 4))):
        at, other = (draw(st.integers(0, len(codes) - 1)) for _ in range(2))
        match draw(st.sampled_from(["remove", "double", "exchange", "copy", "argument"])):
            case "remove" if len(codes) > 1:
                del codes[at]
            case "double":
                codes.insert(at, codes[at])
            case "exchange":
                codes[at], codes[other] = codes[other], codes[at]
            case "copy":
                codes[at] = codes[other]
            case _:
                codes[at] = codes[at][:1] + draw(st.binary(max_size=9))
    return b"".join(codes)
