"""Relative paths in a recipe, made absolute from where they were written."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

from torchrl_ckpt.contracts import MaybePath
from torchrl_ckpt.recipe.shape import ANY, Shape

_SURELY_PATHS = ("./", "../", "/")


def absolute_paths(value: Any, shape: Shape, base: Path) -> Any:
    """`value` with each path in it, as `shape` tells them apart, taken relative to `base`.

    A string that may be a path or a name is a path if it starts like one or if there is one.
    """
    if isinstance(value, str):
        return _absolute(value, base) if _is_path(value, shape, base) else value
    if isinstance(value, list) and shape.items:
        each = shape.items if len(shape.items) > 1 else shape.items * len(value)
        return [absolute_paths(item, of, base) for item, of in zip(value, each, strict=False)]
    if isinstance(value, dict):
        return {
            name: absolute_paths(inner, shape.child(name) or ANY, base)
            for name, inner in value.items()
        }
    return value


def _is_path(value: str, shape: Shape, base: Path) -> bool:
    if any(get_origin(arm.core) is Literal and value in get_args(arm.core) for arm in shape.arms):
        return False
    if any(arm.core is Path for arm in shape.arms):
        return True
    marks = [*shape.metadata, *(mark for arm in shape.arms for mark in arm.metadata)]
    if not value or not any(isinstance(mark, MaybePath) for mark in marks):
        return False
    return value.startswith(_SURELY_PATHS) or (base / value).exists()


def _absolute(value: str, base: Path) -> str:
    return os.path.abspath(base / value)
