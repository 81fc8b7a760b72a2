"""DCP's file writer, with a digest of every file and no error unheard."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import torch
from torch.distributed.checkpoint import FileSystemWriter
from torch.distributed.checkpoint.filesystem import FileSystem
from torch.distributed.checkpoint.metadata import StorageMeta
from torch.distributed.checkpoint.planner import SavePlan, SavePlanner
from torch.distributed.checkpoint.storage import WriteResult
from torch.futures import Future

from torchrl_ckpt.plugin_api.checkpoint_backends import Advance, FileRecord
from torchrl_ckpt.plugin_api.durable_files import (
    DigestingStream,
    Writable,
    fsync_directory,
    make_directory,
)
from torchrl_ckpt.plugin_api.errors import CheckpointDamaged

_BUFFER = 1024 * 1024


class _WatchedStream(DigestingStream):
    """Says how far it is."""

    def __init__(self, stream: Writable, advance: Advance) -> None:
        super().__init__(stream)
        self._advance = advance

    def write(self, data: Any) -> int:
        written = super().write(data)
        self._advance(written)
        return written

    def fileno(self) -> int:
        # Who asks for the descriptor is about to fsync; DCP forgets to flush `.metadata` before.
        self.flush()
        return super().fileno()


class RecordingFileSystem(FileSystem):
    """Digests what is written through it, and makes names durable too, which DCP does not."""

    def __init__(self, advance: Advance) -> None:
        self.records: dict[str, FileRecord] = {}
        self.hash_seconds = 0.0
        self._advance = advance

    @contextmanager
    def create_stream(self, path: str | os.PathLike, mode: str) -> Iterator[Any]:
        if mode != "wb":
            raise ValueError(f"a checkpoint file is written once, from front to back, not {mode!r}")
        # Buffered, since `torch.save` writes in many small pieces.
        with open(path, "wb", buffering=_BUFFER) as file:
            stream = _WatchedStream(file, self._advance)
            yield stream
        name = Path(path).name
        self.hash_seconds += stream.hash_seconds
        self.records[name] = FileRecord(name, stream.size, stream.hexdigest())

    def rename(self, path: str | os.PathLike, new_path: str | os.PathLike) -> None:
        super().rename(path, new_path)
        name = Path(new_path).name
        written = self.records.pop(Path(path).name)
        self.records[name] = FileRecord(name, written.size, written.digest)

    def mkdir(self, path: str | os.PathLike) -> None:
        make_directory(Path(path))


class RecordingWriter(FileSystemWriter):
    """Writes one rank's tensors; `finish_records` says what was written once all is durable."""

    def __init__(
        self, directory: Path, *, thread_count: int, advance: Advance = lambda _: None
    ) -> None:
        super().__init__(directory, sync_files=True, thread_count=thread_count, overwrite=False)
        self.fs = self._recording = RecordingFileSystem(advance)

    @property
    def hash_seconds(self) -> float:
        """Time that digests took, over all threads."""
        return self._recording.hash_seconds

    def write_data(self, plan: SavePlan, planner: SavePlanner) -> Future[list[WriteResult]]:
        try:
            with _no_second_checksum():
                written = super().write_data(plan, planner)
        except RuntimeError as error:
            # `torch.save` fails on the unfinished archive once more; say what it was at first.
            if isinstance(error.__context__, OSError):
                raise error.__context__ from None
            raise
        # A writer thread that fails ends in silence (pytorch#191391): hold it against the plan.
        done = {result.index for result in written.value()}
        missing = [item.index.fqn for item in plan.items if item.index not in done]
        if missing:
            raise CheckpointDamaged(
                f"a checkpoint writer failed: {len(missing)} of {len(plan.items)} tensors were not "
                f"written to {self.path}, {missing[0]} among them"
            )
        return written

    def storage_meta(self) -> StorageMeta:
        # DCP would put a path of this machine and a random number into the file.
        return StorageMeta()

    def finish_records(self) -> list[FileRecord]:
        fsync_directory(cast(Path, self.path))
        return list(self._recording.records.values())


@contextmanager
def _no_second_checksum() -> Iterator[None]:
    """Without the CRC-32 that `torch.save` takes of its own and nobody looks at: it costs as much
    as the write, and the digest of the file says more."""
    before = torch.serialization.get_crc32_options()
    torch.serialization.set_crc32_options(False)
    try:
        yield
    finally:
        torch.serialization.set_crc32_options(before)
