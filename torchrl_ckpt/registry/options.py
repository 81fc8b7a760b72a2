"""A plugin's `Config`: the options it declares, and an instance made from a recipe's table."""

from __future__ import annotations

import dataclasses
import difflib
import inspect
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from types import NoneType, UnionType
from typing import Annotated, Any, Union, get_args, get_origin, get_type_hints

from pydantic import BaseModel, TypeAdapter, ValidationError
from pydantic.dataclasses import is_pydantic_dataclass
from pydantic.fields import FieldInfo

from torchrl_ckpt.plugin_api.errors import RecipeError

_UNKNOWN_KEY = ("extra_forbidden", "unexpected_keyword_argument")
"""What pydantic calls an unknown key in a model and in a dataclass."""


@dataclass(frozen=True)
class Option:
    """One option of a plugin, as a person reads it."""

    name: str
    type: str
    default: str | None
    """None where the option must be given."""
    description: str


def is_config(candidate: Any) -> bool:
    """Whether it is one of the two things that a plugin's `Config` may be."""
    return inspect.isclass(candidate) and (
        dataclasses.is_dataclass(candidate) or issubclass(candidate, BaseModel)
    )


def options_of(config: type) -> tuple[Option, ...]:
    """What `config` declares, in its order. Raises where pydantic cannot make sense of it."""
    return tuple(_option(name, field) for name, field in _fields(config).items())


def build_config(config: type, options: Iterable[Option], table: Mapping[str, Any]) -> Any:
    """An instance of `config`, which declares `options`, from a recipe's keys.

    Raises `RecipeError` with all that is wrong with them. Unknown keys are errors even for a
    `Config` that would let them pass, as dataclasses and pydantic models do unless told not to.
    """
    known = [option.name for option in options]
    open_ended = getattr(config, "model_config", {}).get("extra") == "allow"
    problems = [] if open_ended else [_unknown(key, known) for key in table if key not in known]
    instance: Any = None
    try:
        instance = TypeAdapter(config).validate_python(dict(table))
    except ValidationError as error:
        problems += [
            f"{'.'.join(map(str, problem['loc']))}: {problem['msg']}"
            for problem in error.errors()
            if problem["type"] not in _UNKNOWN_KEY
        ]
    if problems:
        raise RecipeError("; ".join(problems))
    return instance


def _fields(config: Any) -> dict[str, FieldInfo]:
    if issubclass(config, BaseModel):
        return config.model_fields
    if is_pydantic_dataclass(config):
        fields: dict[str, FieldInfo] = config.__pydantic_fields__
        return fields
    hints = get_type_hints(config, include_extras=True)
    return {
        field.name: FieldInfo.from_annotated_attribute(hints[field.name], field)
        for field in dataclasses.fields(config)
        if field.init
    }


def _option(name: str, field: FieldInfo) -> Option:
    kind = _type_name(field.annotation)
    limits = ", ".join(re.sub(r"^\w+\((.+)\)$", r"\1", repr(limit)) for limit in field.metadata)
    if field.is_required():
        default = None
    elif field.default_factory is not None:
        default = repr(field.get_default(call_default_factory=True, validated_data={}))
    else:
        default = repr(field.default)
    return Option(
        name=field.alias or name,
        type=f"{kind} ({limits})" if limits else kind,
        default=default,
        description=" ".join((field.description or "").split()),
    )


def _type_name(annotation: Any) -> str:
    """As one would write it, less what is only of interest to a program."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _type_name(arguments[0])
    if origin in (Union, UnionType):
        return " | ".join(map(_type_name, arguments))
    return "None" if annotation is NoneType else inspect.formatannotation(annotation)


def _unknown(key: str, known: list[str]) -> str:
    similar = difflib.get_close_matches(key, known, n=1)
    hint = f"did you mean `{similar[0]}`?" if similar else f"there is {', '.join(known) or 'none'}."
    return f"{key}: there is no such option; {hint}"
