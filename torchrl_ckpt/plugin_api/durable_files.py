"""Files that survive a crash or a power failure: written whole, fsynced, their names fsynced too.

Two ways to write one. `write_bytes` and `write_json` replace a file in one rename, so that a reader
sees the old content or the new. `recorded_file` and `record_json` write a new file of a checkpoint
and return its `FileRecord`; the checkpoint itself appears in one rename.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from io import FileIO
from pathlib import Path
from typing import Any, Protocol

import xxhash

from torchrl_ckpt.plugin_api.checkpoint_backends import Advance, FileRecord

_CHUNK_BYTES = 1024 * 1024


class Writable(Protocol):
    """The part of a binary file that `DigestingStream` uses."""

    def write(self, data: Any, /) -> int: ...

    def flush(self) -> None: ...

    def fileno(self) -> int: ...


class DigestingStream:
    """Writes to a file and computes size and digest of the bytes on the way.

    It cannot seek: the digest of the bytes written is that of the file only if they are written
    from front to back. `hash_seconds` is the time that the digest took.
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
        """Leave the file open: whoever opened it closes it."""

    def tell(self) -> int:
        return self.size

    def flush(self) -> None:
        self._stream.flush()

    def fileno(self) -> int:
        return self._stream.fileno()

    def hexdigest(self) -> str:
        return self._hash.hexdigest()


def digest_file(path: Path, advance: Advance = lambda _: None) -> tuple[int, str]:
    """Return size and xxh3-128 of a file as it is on disk now."""
    with open(path, "rb", buffering=0) as file:
        return digest_stream(file, advance)


def digest_stream(
    file: FileIO, advance: Advance = lambda _: None, *, max_bytes: int | None = None
) -> tuple[int, str]:
    """Return size and xxh3-128 of what is left of `file`, or of its next `max_bytes`."""
    hasher = xxhash.xxh3_128()
    size = 0
    # One buffer for all chunks: allocating new memory takes longer than filling it.
    memory = memoryview(bytearray(_CHUNK_BYTES))
    while True:
        left = len(memory) if max_bytes is None else max_bytes - size
        if not (count := file.readinto(memory[:left])):
            return size, hasher.hexdigest()
        hasher.update(memory[:count])
        size += count
        advance(count)


def fsync_file(path: Path) -> None:
    """Make the bytes of a file durable that was written without fsync."""
    _fsync(path, os.O_RDONLY)


def fsync_directory(directory: Path) -> None:
    """Make the names in `directory` durable."""
    _fsync(directory, os.O_RDONLY | os.O_DIRECTORY)


def fsync_tree(directory: Path) -> None:
    """Make every file and every name below `directory` durable, the innermost first."""
    for parent, _, names in os.walk(directory, topdown=False):
        for name in sorted(names):
            fsync_file(Path(parent, name))
        fsync_directory(Path(parent))


def _fsync(path: Path, flags: int) -> None:
    descriptor = os.open(path, flags)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def make_directory(directory: Path, mode: int = 0o777) -> None:
    """Create `directory` and its missing parents, and make each new name durable.

    `mode` is that of `directory` itself, less the umask.
    """
    if directory.is_dir():
        return
    make_directory(directory.parent)
    directory.mkdir(mode, exist_ok=True)
    fsync_directory(directory.parent)


@contextmanager
def recorded_file(root: Path, relative: str) -> Iterator[tuple[DigestingStream, list[FileRecord]]]:
    """Open the new file `root/relative` for writing.

    Yields its stream and a list. When the block ends, the file is made durable and its record is
    appended to the list.
    """
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
    """Write `value` durably to the new file `root/relative` and return its record."""
    with recorded_file(root, relative) as (stream, records):
        stream.write(_json_bytes(value))
    return records[0]


def write_bytes(path: Path, data: bytes) -> None:
    """Replace the file at `path` by `data`: a reader sees the old file or the new one, whole."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    # A link in its place, in a directory of somebody else's, would lead anywhere.
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW
    with open(os.open(temporary, flags, 0o666), "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)
    fsync_directory(path.parent)


def write_json(path: Path, value: Any) -> None:
    """Replace the file at `path` by `value` as JSON, as `write_bytes` does.

    Raises `ValueError` for NaN and infinities, and then leaves the old file.
    """
    write_bytes(path, _json_bytes(value))


def read_json(path: Path) -> Any:
    """Read JSON. Raises `FileNotFoundError`, or `ValueError` for a file that is not JSON."""
    return json.loads(path.read_bytes())


def _json_bytes(value: Any) -> bytes:
    return (json.dumps(value, indent=1, sort_keys=True, allow_nan=False) + "\n").encode()
