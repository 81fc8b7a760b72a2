"""Environment variables that a recipe names, and the secrets that are in them.

A secret is never in a recipe: an option typed `pydantic.SecretStr` (or `SecretBytes`) is given as
`env:NAME`. `resolved.json` and manifests hold that name; the value is read in the process that
creates the plugin.

A recipe may be somebody else's, and says where a secret goes: to the server or the plugin that it
names. So a recipe names variables that begin with `TORCHRL_CKPT_`; any other has to be named on the
command line.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Sequence
from typing import Any

from pydantic import Secret, SecretBytes, SecretStr

from torchrl_ckpt.config.option_spec import OptionSpec
from torchrl_ckpt.config.section import NamesVariable
from torchrl_ckpt.plugin_api.errors import RecipeError

PREFIX = "TORCHRL_CKPT_"

_REFERENCE = re.compile(r"env:([A-Za-z_][A-Za-z0-9_]*)")
_SECRET_NAME = re.compile(r"(KEY|TOKEN|SECRET|PASSWORD)$", re.IGNORECASE)
_MIN_SECRET_LENGTH = 8

_secrets_read: set[str] = set()
_OMITTED = object()


def names_variable(spec: OptionSpec) -> bool:
    """Whether the option is the name of an environment variable."""
    return any(isinstance(mark, NamesVariable) for mark in spec.metadata)


def referenced_variable(value: Any) -> str | None:
    """The variable that a secret's `value` names; None for anything else, such as the secret."""
    match = _REFERENCE.fullmatch(value) if isinstance(value, str) else None
    return match and match[1]


def map_secrets(value: Any, spec: OptionSpec, replace: Callable[[Any], Any]) -> Any:
    """Return plain data with `replace` applied to each value of an option typed as a secret."""
    return _map_secrets(value, [spec], replace)


def with_references(as_json: Any, as_python: Any) -> Any:
    """A plugin's options as JSON, in which pydantic has put stars for secrets, with the references
    to variables that `as_python`, the same options, holds.

    A default that is a secret itself is left out: the plugin fills it in again.
    """
    if isinstance(as_python, SecretStr | SecretBytes | Secret):
        secret = as_python.get_secret_value()
        reference = secret.decode(errors="replace") if isinstance(secret, bytes) else secret
        return reference if referenced_variable(reference) else _OMITTED
    if isinstance(as_json, dict) and isinstance(as_python, dict):
        pairs = zip(as_json, as_json.values(), as_python.values(), strict=True)
        merged = {name: with_references(*values) for name, *values in pairs}
        return {name: value for name, value in merged.items() if value is not _OMITTED}
    if isinstance(as_json, list) and isinstance(as_python, list | tuple | set | frozenset):
        values = [with_references(*pair) for pair in zip(as_json, as_python, strict=True)]
        return _OMITTED if _OMITTED in values else values
    return as_json


def read_secret(value: Any, *, any_variable: bool) -> str:
    """Return the secret that `value` refers to.

    Raises `RecipeError` for a variable that is not set, one that a recipe may not name unless
    `any_variable`, and a value that is no reference, which is not shown.
    """
    name = referenced_variable(value)
    if name is None:
        raise RecipeError(LITERAL)
    if not any_variable and not name.startswith(PREFIX):
        raise RecipeError(f"it names the environment variable {name}; {PREFIXED_ONLY}")
    require_variable(value)
    _secrets_read.add(os.environ[name])
    return os.environ[name]


def require_variable(value: Any) -> Any:
    """Return `value`. Raises `RecipeError` if it refers to a variable that is not set."""
    name = referenced_variable(value)
    if name is not None and not os.environ.get(name):
        raise RecipeError(f"the environment variable {name}, which is to hold a secret, is not set")
    return value


def redacted(text: str) -> str:
    """`text` with `***` for the secrets that this process has read, and for the values of
    environment variables whose names end like a secret's."""
    named = {
        value
        for name, value in os.environ.items()
        if len(value) >= _MIN_SECRET_LENGTH and _SECRET_NAME.search(name)
    }
    for secret in sorted(_secrets_read | named, key=len, reverse=True):
        text = text.replace(secret, "***")
    return text


LITERAL = (
    f"takes a secret, which is not written here: give the environment variable that holds it, as "
    f'in "env:{PREFIX}TOKEN"'
)
"""What is wrong with a secret in a recipe."""

PREFIXED_ONLY = (
    f"a recipe names variables that begin with {PREFIX} only, because it also says where their "
    "values are sent"
)
"""What is wrong with another variable in a recipe."""


def _map_secrets(value: Any, specs: Sequence[OptionSpec], replace: Callable[[Any], Any]) -> Any:
    """`map_secrets` of a value that one of `specs` fits."""
    arms = [arm for spec in specs for arm in spec.arms]
    if value is None:
        return None
    if any(_is_secret(arm) for arm in arms):
        return replace(value)
    if isinstance(value, list):
        return [
            _map_secrets(item, [_item(arm, i) for arm in arms if arm.items], replace)
            for i, item in enumerate(value)
        ]
    if isinstance(value, dict):
        return {
            name: _map_secrets(inner, [c for arm in arms if (c := arm.child(name))], replace)
            for name, inner in value.items()
        }
    return value


def _item(sequence: OptionSpec, index: int) -> OptionSpec:
    return sequence.items[min(index, len(sequence.items) - 1)]


def _is_secret(spec: OptionSpec) -> bool:
    core = getattr(spec.core, "__origin__", spec.core)
    return isinstance(core, type) and issubclass(core, SecretStr | SecretBytes | Secret)
