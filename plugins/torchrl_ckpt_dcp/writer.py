"""DCP's file writer, with a digest of every file and no error unheard."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

from torch.distributed.checkpoint import FileSystemWriter
from torch.distributed.checkpoint.filesystem import FileSystem
from torch.distributed.checkpoint.metadata import StorageMeta
from torch.distributed.checkpoint.planner import SavePlan, SavePlanner
from torch.distributed.checkpoint.storage import WriteResult
from torch.futures import Future

from torchrl_ckpt.contracts import FileRecord
from torchrl_ckpt.durable import DigestingStream, fsync_directory, make_directory
from torchrl_ckpt.errors import CheckpointDamaged

_BUFFER = 1024 * 1024


class _FlushedStream(DigestingStream):
    """Who asks for the descriptor is about to fsync; DCP forgets to flush `.metadata` before."""

    def fileno(self) -> int:
        self.flush()
        return super().fileno()


class RecordingFileSystem(FileSystem):
    """Digests what is written through it, and makes names durable too, which DCP does not."""

    def __init__(self) -> None:
        self.records: dict[str, FileRecord] = {}

    @contextmanager
    def create_stream(self, path: str | os.PathLike, mode: str) -> Iterator[Any]:
        if mode != "wb":
            raise ValueError(f"a checkpoint file is written once, from front to back, not {mode!r}")
        # Buffered, since `torch.save` writes in many small pieces.
        with open(path, "wb", buffering=_BUFFER) as file:
            stream = _FlushedStream(file)
            yield stream
        name = Path(path).name
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

    def __init__(self, directory: Path, *, thread_count: int) -> None:
        super().__init__(directory, sync_files=True, thread_count=thread_count, overwrite=False)
        self.fs = RecordingFileSystem()

    def write_data(self, plan: SavePlan, planner: SavePlanner) -> Future[list[WriteResult]]:
        written = super().write_data(plan, planner)
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
        return list(cast(RecordingFileSystem, self.fs).records.values())
