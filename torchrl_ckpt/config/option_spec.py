"""Type, default and documentation of an option, read from its declaration.

The same reflection serves recipes and the `Config` of plugins.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property, lru_cache
from types import NoneType, UnionType
from typing import Annotated, Any, Union, get_args, get_origin, get_type_hints

from pydantic import BaseModel, TypeAdapter, ValidationError
from pydantic.dataclasses import is_pydantic_dataclass
from pydantic.fields import FieldInfo

from torchrl_ckpt.config.section import PluginKind, PluginTable
from torchrl_ckpt.plugin_api.plugin import Kind

Key = tuple[str, ...]
"""A dotted key in parts: `("ckpt", "keep")`."""

REQUIRED = object()
"""Stands for the default of an option that has none."""

_SEQUENCES = (list, tuple, set, frozenset, Sequence)


@dataclasses.dataclass(frozen=True)
class OptionSpec:
    """The type, default and documentation of an option, or of a table with options below it."""

    annotation: Any
    default: Any = REQUIRED
    documentation: str = ""

    @cached_property
    def _parts(self) -> tuple[Any, tuple[Any, ...], bool]:
        return _unwrap(self.annotation)

    @property
    def core(self) -> Any:
        """The type without constraints and without None."""
        return self._parts[0]

    @property
    def metadata(self) -> tuple[Any, ...]:
        """Constraints and marks of the type."""
        return self._parts[1]

    @property
    def optional(self) -> bool:
        """Whether the option can be off."""
        return self._parts[2]

    @property
    def kind(self) -> Kind | None:
        """The kind of plugin that this table names; None for any other option."""
        return next((mark.kind for mark in self.metadata if isinstance(mark, PluginKind)), None)

    @property
    def section(self) -> type | None:
        """The class whose fields are the keys of this table; None for any other option."""
        core = self.core
        if not isinstance(core, type) or issubclass(core, PluginTable):
            return None
        return core if issubclass(core, BaseModel) or dataclasses.is_dataclass(core) else None

    @property
    def mapping_of(self) -> OptionSpec | None:
        """The spec of each value of a table with free keys; None for any other option."""
        if (get_origin(self.core) or self.core) not in (dict, Mapping):
            return None
        return OptionSpec((*get_args(self.core), Any, Any)[1])

    @property
    def items(self) -> tuple[OptionSpec, ...]:
        """The specs of a sequence's elements, a single one if all are alike; empty for others."""
        if (get_origin(self.core) or self.core) not in _SEQUENCES:
            return ()
        return tuple(OptionSpec(item) for item in get_args(self.core) if item is not ...) or (ANY,)

    @property
    def arms(self) -> tuple[OptionSpec, ...]:
        """The alternatives of a union; for any other type the spec alone."""
        if get_origin(self.core) in (Union, UnionType):
            return tuple(OptionSpec(arm) for arm in get_args(self.core))
        return (self,)

    @property
    def is_any(self) -> bool:
        """Whether nothing is known about the type."""
        return self.core is Any

    @property
    def is_table(self) -> bool:
        return bool(self.section or self.kind or self.mapping_of)

    @property
    def shared_keys(self) -> tuple[str, ...]:
        """For the root of a recipe: the keys that reach every section that has them."""
        return getattr(self.section, "shared_keys", ())

    def sections_sharing(self, name: str) -> list[str]:
        """For the root of a recipe: the sections that the key `name` reaches."""
        if name not in self.shared_keys:
            return []
        return [
            section
            for section, spec in fields(self.section).items()
            if section not in self.shared_keys and spec.section and name in fields(spec.section)
        ]

    def child(self, name: str) -> OptionSpec | None:
        """The spec of the key `name` below this one; None if there is no such key."""
        if self.section:
            return fields(self.section).get(name, ANY if is_open(self.section) else None)
        if self.kind:
            return _NAME if name == "type" else ANY
        return ANY if self.is_any else self.mapping_of

    def find(self, key: Key) -> OptionSpec | None:
        """The spec of a dotted key below this one; None if there is no such key."""
        spec: OptionSpec | None = self
        for name in key:
            spec = spec and spec.child(name)
        return spec

    def accepts(self, value: Any) -> bool:
        """Whether plain data is of this type; converts only to types that TOML does not have."""
        try:
            TypeAdapter(self.annotation).validate_json(json.dumps(value), strict=True)
        except ValidationError:
            return False
        return True


ANY = OptionSpec(Any)
"""The spec of a key about which nothing is known yet, such as an option of a plugin."""

_NAME = OptionSpec(str)


@lru_cache
def fields(section: Any) -> Mapping[str, OptionSpec]:
    """The keys of a pydantic model or a dataclass, in their order.

    Raises whatever pydantic and `typing` raise for annotations that cannot be resolved.
    """
    return {
        field.alias or name: OptionSpec(
            _annotated(field.annotation, field.metadata),
            _default(field),
            " ".join((field.description or "").split()),
        )
        for name, field in _field_infos(section).items()
    }


def all_keys(section: type, above: Key = ()) -> Iterator[tuple[Key, OptionSpec]]:
    """Every key at any depth, a section's own name before its keys."""
    for name, spec in fields(section).items():
        yield (*above, name), spec
        if spec.section:
            yield from all_keys(spec.section, (*above, name))


def is_open(section: type) -> bool:
    """Whether a table of this class may have keys that it does not declare."""
    return getattr(section, "model_config", {}).get("extra") == "allow"


def _field_infos(section: Any) -> Mapping[str, FieldInfo]:
    if issubclass(section, BaseModel):
        return section.model_fields
    if is_pydantic_dataclass(section):
        infos: dict[str, FieldInfo] = section.__pydantic_fields__
        return infos
    hints = get_type_hints(section, include_extras=True)
    return {
        field.name: FieldInfo.from_annotated_attribute(hints[field.name], field)
        for field in dataclasses.fields(section)
        if field.init
    }


def _unwrap(annotation: Any) -> tuple[Any, tuple[Any, ...], bool]:
    """The type inside `Annotated[... | None, ...]`, its metadata, and whether None is allowed."""
    if get_origin(annotation) is Annotated:
        inner, *marks = get_args(annotation)
        core, metadata, optional = _unwrap(inner)
        own = [mark.metadata if isinstance(mark, FieldInfo) else [mark] for mark in marks]
        return core, (*metadata, *(mark for group in own for mark in group)), optional
    if get_origin(annotation) in (Union, UnionType) and NoneType in get_args(annotation):
        rest = tuple(arm for arm in get_args(annotation) if arm is not NoneType)
        core, metadata, _ = _unwrap(Union[rest])  # noqa: UP007 - made at run time
        return core, metadata, True
    return annotation, (), False


def _annotated(annotation: Any, metadata: Sequence[Any]) -> Any:
    return Annotated[(annotation, *metadata)] if metadata else annotation


def _default(field: FieldInfo) -> Any:
    """The default; None where it depends on other fields, as only a plugin's option may."""
    if field.default_factory_takes_validated_data:
        return None
    return REQUIRED if field.is_required() else field.get_default(call_default_factory=True)
