"""What plugins of every kind have in common.

A plugin is a class that an entry point of the group `torchrl_ckpt.KIND` names. It states
`plugin_api = 1` and may carry a `Config`, a pydantic model or a dataclass: the plugin's table in
the recipe, without `type`, is checked against it. It is built as `Plugin(config)`, or as `Plugin()`
where it has no `Config`.

An option that is a secret is typed `pydantic.SecretStr`: recipes give it as `env:NAME`, and the
plugin gets the value of that environment variable.

This package does not import torch, so that plugins can be listed and checked without it; only
`collectives.py` does.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal, Protocol

PLUGIN_API = 1
"""The version of this interface, which a plugin states as its `plugin_api`."""

Kind = Literal["models", "losses", "checkpoint_backends", "environments", "engines"]
KINDS: tuple[Kind, ...] = ("models", "losses", "checkpoint_backends", "environments", "engines")


class Plugin(Protocol):
    """A plugin class of any kind."""

    plugin_api: ClassVar[int]


@dataclass(frozen=True)
class MaybePath:
    """Marks a string in a `Config`: a path where such a directory exists, else a hub name."""


PathOrName = Annotated[str, MaybePath()]

Message = Mapping[str, Any]
"""One chat message: `{"role": ..., "content": ...}`."""

Json = Any
"""What `json.dumps` takes: the only form in which state other than tensors is saved."""
