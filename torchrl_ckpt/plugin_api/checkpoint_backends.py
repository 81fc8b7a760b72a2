"""Checkpoint backend plugins: tensors into files and back."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Protocol, runtime_checkable

from torchrl_ckpt.plugin_api.plugin import Plugin

if TYPE_CHECKING:
    import torch
    from torch.distributed import ProcessGroup


@dataclass(frozen=True)
class FileRecord:
    """A file of a checkpoint, as it was written.

    `path` is relative with `/`; `digest` is the xxh3-128 of its bytes in hexadecimal, taken while
    writing, so that whatever happens to the bytes afterwards shows.
    """

    path: str
    size: int
    digest: str


@dataclass(frozen=True)
class Written:
    """What one rank wrote, now that it is durable.

    `metrics` is what the backend has measured of it, such as `write_seconds`, `hash_seconds` and
    `staged_bytes`.
    """

    files: Sequence[FileRecord]
    metrics: Mapping[str, float] = field(default_factory=dict)


Advance = Callable[[int], object]
"""Told of bytes as they are gone through, for who watches."""


class Save(Protocol):
    """A save under way."""

    def wait_staged(self) -> None:
        """Return once the state may change again. Raises nothing: `wait_written` does."""
        ...

    def wait_written(self, advance: Advance = lambda _: None) -> Written:
        """Return once every byte that this rank wrote is durable. Collective, as `save` is.

        Raises whatever the writer raised; every tensor of the state is in one of the files of one
        of the ranks. `advance` hears of bytes as they are written.
        """
        ...


class CheckpointBackend(Plugin, Protocol):
    """Puts tensors into files and back. When to save and what to keep is not its affair."""

    file_format: ClassVar[str]
    """The name of what it writes. Backends of one format read each other's files."""

    in_background: ClassVar[bool]
    """Whether training goes on while it writes. `wait_written` is then called on a thread of its
    own, and `save` only after the `wait_written` of the save before has returned."""

    def prepare(self, state: Mapping[str, torch.Tensor], group: ProcessGroup) -> None:
        """Make ready what saves will need, before the first of them and before the first step.

        `state` has the names, shapes and placement of what will be saved; its values do not
        matter. Collective. Where it is not called, the first save does it, and takes longer.
        """
        ...

    def save(self, state: Mapping[str, torch.Tensor], directory: Path, group: ProcessGroup) -> Save:
        """Begin to write `state` (tensors and DTensors under unique names) below `directory`.

        Collective over `group`, which is the checkpoint's own (gloo) and used by nobody else; it
        raises on every rank or on none.
        """
        ...

    def load(self, state: Mapping[str, torch.Tensor], directory: Path, group: ProcessGroup) -> None:
        """Fill the tensors of `state` in place, resharding where the layout differs.

        Raises `CheckpointMismatch` for a name or shape that the files lack, and executes nothing
        that it reads.
        """
        ...

    def close(self) -> None:
        """Drain what is under way and give back processes and buffers."""
        ...


@dataclass(frozen=True)
class TensorDescription:
    """A tensor of a checkpoint, whole, however it is sharded. `dtype` is such as `float32`."""

    name: str
    shape: tuple[int, ...]
    dtype: str


@runtime_checkable
class ReadableBackend(Protocol):
    """What a checkpoint backend may offer besides: a look into its files without a model.

    `torchrl-ckpt ckpt inspect`, `diff` and `export` need it. Both methods work in one process, join
    no group and execute nothing that they read; they raise `CheckpointDamaged` for files that are
    not what `save` wrote.
    """

    def describe(self, directory: Path) -> list[TensorDescription]:
        """What `save` has put below `directory`, by name."""
        ...

    def read(self, directory: Path, names: Collection[str]) -> dict[str, torch.Tensor]:
        """Those tensors, whole and on CPU."""
        ...
