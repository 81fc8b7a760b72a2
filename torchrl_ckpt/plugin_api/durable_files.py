"""Files that are whole or absent: written beside their place, fsynced, then renamed into it."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import xxhash

from torchrl_ckpt.plugin_api.checkpoint_backends import Advance, FileRecord

_CHUNK = 1024 * 1024


class Writable(Protocol):
    """What `DigestingStream` writes into."""

    def write(self, data: Any, /) -> int: ...

    def flush(self) -> None: ...

    def fileno(self) -> int: ...


class DigestingStream:
    """Passes bytes on to a file and takes their size and digest on the way.

    It cannot seek: a digest of what was written is a digest of the file only if it was written
    from front to back.
    """

    def __init__(self, stream: Writable) -> None:
        self._stream = stream
        self._hash = xxhash.xxh3_128()
        self.size = 0
        self.hash_seconds = 0.0

    def write(self, data: Any) -> int:
        view = memoryview(data).cast("B")
        written = 0
        while written < len(view):
            written += self._stream.write(view[written:])
        began = time.perf_counter()
        self._hash.update(view)
        self.hash_seconds += time.perf_counter() - began
        self.size += len(view)
        return len(view)

    def close(self) -> None:
        """The file belongs to who opened it."""

    def tell(self) -> int:
        return self.size

    def flush(self) -> None:
        self._stream.flush()

    def fileno(self) -> int:
        return self._stream.fileno()

    def hexdigest(self) -> str:
        return self._hash.hexdigest()


def digest_file(path: Path, advance: Advance = lambda _: None) -> tuple[int, str]:
    """Size and xxh3-128 of a file as it is on disk now."""
    hasher = xxhash.xxh3_128()
    size = 0
    # The same memory for every piece: to find new memory takes longer than to fill it.
    memory = memoryview(bytearray(_CHUNK))
    with open(path, "rb", buffering=0) as file:
        while count := file.readinto(memory):
            hasher.update(memory[:count])
            size += count
            advance(count)
    return size, hasher.hexdigest()


def fsync_file(path: Path) -> None:
    """Make the bytes of a file durable that was written without."""
    _fsync(path, os.O_RDONLY)


def fsync_directory(directory: Path) -> None:
    """Make the names in `directory` durable."""
    _fsync(directory, os.O_RDONLY | os.O_DIRECTORY)


def _fsync(path: Path, flags: int) -> None:
    descriptor = os.open(path, flags)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def make_directory(directory: Path) -> None:
    """Create `directory` and the missing ones above it, and make each new name durable."""
    if directory.is_dir():
        return
    make_directory(directory.parent)
    directory.mkdir(exist_ok=True)
    fsync_directory(directory.parent)


@contextmanager
def recorded_file(root: Path, relative: str) -> Iterator[tuple[DigestingStream, list[FileRecord]]]:
    """A new file `root/relative`: its stream, and a list with its record once it is durable."""
    records: list[FileRecord] = []
    path = root / relative
    make_directory(path.parent)
    with open(path, "wb", buffering=0) as file:
        stream = DigestingStream(file)
        yield stream, records
        os.fsync(file.fileno())
    fsync_directory(path.parent)
    records.append(FileRecord(relative, stream.size, stream.hexdigest()))


def record_json(root: Path, relative: str, value: Any) -> FileRecord:
    """Write `value` durably to the new file `root/relative` and say what was written."""
    with recorded_file(root, relative) as (stream, records):
        stream.write(_json_bytes(value))
    return records[0]


def write_bytes(path: Path, data: bytes) -> None:
    """Put `data` at `path` so that a reader sees the old file or the new one, whole."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with open(temporary, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)
    fsync_directory(path.parent)


def write_json(path: Path, value: Any) -> None:
    """Put `value` at `path` so that a reader sees the old file or the new one, whole."""
    write_bytes(path, _json_bytes(value))


def read_json(path: Path) -> Any:
    """Raises `FileNotFoundError`, or `ValueError` for what is not JSON."""
    return json.loads(path.read_bytes())


def _json_bytes(value: Any) -> bytes:
    return (json.dumps(value, indent=1, sort_keys=True, allow_nan=False) + "\n").encode()
