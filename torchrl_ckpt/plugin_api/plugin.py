"""What every plugin is: a class that an entry point names.

It states `plugin_api = 1`, may carry a `Config` (a pydantic model or a dataclass; the plugin's
table in the recipe, less `type`, is checked against it), and is built as `Plugin(config)`, or
`Plugin()` where it has no `Config`. This package does not import torch, so that plugins can be
listed and checked without it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Protocol

if TYPE_CHECKING:
    pass


PLUGIN_API = 1


Kind = Literal["models", "losses", "checkpoint_backends", "environments", "engines"]


KINDS: tuple[Kind, ...] = ("models", "losses", "checkpoint_backends", "environments", "engines")


@dataclass(frozen=True)
class MaybePath:
    """Marks a string in a `Config`: a path where such a directory exists, else a hub name."""


PathOrName = Annotated[str, MaybePath()]


Message = Mapping[str, Any]
"""One chat message: `{"role": ..., "content": ...}`."""


Json = Any
"""What `json.dumps` takes: the only form in which state that is not a tensor is kept."""


class Plugin(Protocol):
    """What every plugin class carries, whatever its kind."""

    plugin_api: ClassVar[int]
