"""Checkpoint backend plugins: write tensors to files and read them back.

A backend decides the files and nothing else: when to save, what to keep and what is committed is
the core's part.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Protocol, runtime_checkable

from torchrl_ckpt.plugin_api.plugin import Plugin

if TYPE_CHECKING:
    import torch
    from torch.distributed import ProcessGroup

Advance = Callable[[int], object]
"""Progress callback: called with the number of bytes just processed."""


class CheckpointBackend(Plugin, Protocol):
    """Writes the tensors of a training state to files and reads them back."""

    file_format: ClassVar[str]
    """The name of the format it writes. Backends of one format read each other's files."""

    in_background: ClassVar[bool]
    """Whether training goes on while it writes. `wait_written` is then called on a thread of its
    own, and `save` only after the `wait_written` of the previous save has returned."""

    def prepare(self, state: Mapping[str, torch.Tensor], group: ProcessGroup) -> None:
        """Set up what saves need, before the first step of training.

        `state` has the names, shapes and placement of what will be saved; its values do not
        matter. Collective. If it is not called, the first save does the same and takes longer.
        """
        ...

    def save(self, state: Mapping[str, torch.Tensor], directory: Path, group: ProcessGroup) -> Save:
        """Begin to write `state` (tensors and DTensors under unique names) below `directory`.

        Collective over `group`, a gloo group that only checkpoints use; it raises on every rank or
        on none.
        """
        ...

    def load(self, state: Mapping[str, torch.Tensor], directory: Path, group: ProcessGroup) -> None:
        """Fill the tensors of `state` in place, resharding where the layout differs.

        Raises `CheckpointMismatch` for a name or shape that the files lack, and executes nothing
        that it reads.
        """
        ...

    def close(self) -> None:
        """Finish a save in progress and release processes and buffers."""
        ...


class Save(Protocol):
    """A save in progress."""

    def wait_staged(self) -> None:
        """Return once the state may change again. Raises nothing: `wait_written` does."""
        ...

    def wait_written(self, advance: Advance = lambda _: None) -> Written:
        """Return once every byte that this rank wrote is durable. Collective, as `save` is.

        Every tensor of the state is then in one of the files of one of the ranks. Raises whatever
        the writer raised. `advance` is called as bytes are written.
        """
        ...


@dataclass(frozen=True)
class Written:
    """What one rank wrote, once it is durable.

    `metrics` are the backend's own measurements, such as `write_seconds`, `hash_seconds` and
    `staged_bytes`.
    """

    files: Sequence[FileRecord]
    metrics: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class FileRecord:
    """A file of a checkpoint, as it was written.

    `path` is relative with `/`; `digest` is the xxh3-128 of its bytes in hexadecimal. It is taken
    while writing, so that any later change of the bytes is found.
    """

    path: str
    size: int
    digest: str


@runtime_checkable
class ReadableBackend(Protocol):
    """Optional part of a checkpoint backend: reads its files without a model.

    `torchrl-ckpt ckpt inspect`, `diff` and `export` need it. Both methods work in one process, join
    no group and execute nothing that they read; they raise `CheckpointDamaged` for files that are
    not what `save` wrote.
    """

    def describe(self, directory: Path) -> list[TensorDescription]:
        """Describe what `save` wrote below `directory`, ordered by name."""
        ...

    def read(self, directory: Path, names: Collection[str]) -> dict[str, torch.Tensor]:
        """Read the tensors `names`, whole and on CPU."""
        ...


@dataclass(frozen=True)
class TensorDescription:
    """A tensor of a checkpoint, whole, however it is sharded. `dtype` is such as `float32`."""

    name: str
    shape: tuple[int, ...]
    dtype: str
