"""DCP's file writer, which digests every file and reports every failure of a writer thread."""

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

from torchrl_ckpt.plugin_api import heartbeat
from torchrl_ckpt.plugin_api.checkpoint_backends import Advance, FileRecord
from torchrl_ckpt.plugin_api.durable_files import (
    DigestingStream,
    Writable,
    fsync_directory,
    make_directory,
)
from torchrl_ckpt.plugin_api.errors import CheckpointDamaged

_BUFFER_BYTES = 1024 * 1024


class _ProgressStream(DigestingStream):
    """Calls `advance` with the size of every write."""

    def __init__(self, stream: Writable, advance: Advance) -> None:
        super().__init__(stream)
        self._advance = advance

    def write(self, data: Any) -> int:
        written = super().write(data)
        heartbeat.beat()
        self._advance(written)
        return written

    def fileno(self) -> int:
        # The caller is about to fsync, and DCP does not flush `.metadata` before it does.
        self.flush()
        return super().fileno()


class RecordingFileSystem(FileSystem):
    """Digests the files written through it, and makes new directories durable; DCP does neither."""

    def __init__(self, advance: Advance) -> None:
        self.records: dict[str, FileRecord] = {}
        self.hash_seconds = 0.0
        self._advance = advance

    @contextmanager
    def create_stream(self, path: str | os.PathLike, mode: str) -> Iterator[Any]:
        if mode != "wb":
            raise ValueError(f"checkpoint files are only opened with mode 'wb', not {mode!r}")
        # Buffered, since `torch.save` makes many small writes.
        with open(path, "wb", buffering=_BUFFER_BYTES) as file:
            stream = _ProgressStream(file, self._advance)
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
    """Writes one rank's tensors; `durable_files` then syncs the directory and lists the files."""

    def __init__(
        self, directory: Path, *, thread_count: int, advance: Advance = lambda _: None
    ) -> None:
        super().__init__(directory, sync_files=True, thread_count=thread_count, overwrite=False)
        self.fs = self._recording = RecordingFileSystem(advance)

    @property
    def hash_seconds(self) -> float:
        """The time spent on digests, summed over all threads."""
        return self._recording.hash_seconds

    def write_plan(self, plan: SavePlan, planner: SavePlanner) -> list[WriteResult]:
        """Write the tensors of `plan`, which `planner` finds, into a directory without a
        checkpoint, which is made if need be."""
        self.set_up_storage_writer(is_coordinator=True)
        return self.write_data(self.prepare_local_plan(plan), planner).value()

    def write_data(self, plan: SavePlan, planner: SavePlanner) -> Future[list[WriteResult]]:
        try:
            with _no_second_checksum():
                written = super().write_data(plan, planner)
        except RuntimeError as error:
            # After the first error `torch.save` fails again, on the unfinished archive.
            if isinstance(error.__context__, OSError):
                raise error.__context__ from None
            raise
        # DCP drops the error of a writer thread (pytorch#191391): compare with the plan.
        done = {result.index for result in written.value()}
        missing = [item.index.fqn for item in plan.items if item.index not in done]
        if missing:
            raise CheckpointDamaged(
                f"a checkpoint writer failed: {len(missing)} of {len(plan.items)} tensors were not "
                f"written to {self.path}, {missing[0]} among them"
            )
        return written

    def storage_meta(self) -> StorageMeta:
        # DCP would store a path of this machine and a random id.
        return StorageMeta()

    def durable_files(self) -> list[FileRecord]:
        """Sync the directory and return a record of every file written so far."""
        fsync_directory(cast(Path, self.path))
        return list(self._recording.records.values())


@contextmanager
def _no_second_checksum() -> Iterator[None]:
    """Turn off the CRC-32 of `torch.save`, which nothing reads: it takes as long as the write, and
    the digest of the whole file covers more."""
    before = torch.serialization.get_crc32_options()
    torch.serialization.set_crc32_options(False)
    try:
        yield
    finally:
        torch.serialization.set_crc32_options(before)
