"""JSON Lines files of any size: only positions and numbers of their lines are held in memory."""

from __future__ import annotations

import array
import codecs
import gzip
import os
import shutil
import tempfile
import zlib
from pathlib import Path
from typing import IO

from torchrl_ckpt.plugin_api.errors import DataError

_GZIP_MAGIC = b"\x1f\x8b"
_UTF_16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
_CHUNK_BYTES = 1 << 20


class DataFile:
    """The lines of the file at `path` that are not blank, plain or gzipped, in UTF-8.

    A gzipped file is decompressed into a temporary one, for its lines are read in any order. Lines
    end at a line feed and at no other character. Raises `DataError` for a file that cannot be read.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            if path.exists() and not path.is_file():
                raise OSError("it is not a regular file")
            self._file = _opened(path)
            self._starts, self._numbers = _lines(self._file)
        except (OSError, EOFError, zlib.error) as error:
            reason = getattr(error, "strerror", None) or error
            raise DataError(f"cannot read the data file {path}: {reason}") from None

    def __len__(self) -> int:
        return len(self._numbers)

    def line(self, index: int) -> bytes:
        """Return line `index` of those that are not blank. Several processes may call this."""
        start, end = self._starts[index], self._starts[index + 1]
        return os.pread(self._file.fileno(), end - start, start).strip()

    def number(self, index: int) -> int:
        """Return the number in the file, from 1, of line `index` of those that are not blank."""
        return self._numbers[index]


def _opened(path: Path) -> IO[bytes]:
    file = open(path, "rb")  # noqa: SIM115 - stays open
    head = file.read(2)
    file.seek(0)
    if head in _UTF_16:
        raise OSError("it is in UTF-16; save it in UTF-8")
    if head != _GZIP_MAGIC:
        return file
    decompressed = tempfile.TemporaryFile()  # noqa: SIM115 - stays open
    with file, gzip.GzipFile(fileobj=file) as compressed:
        shutil.copyfileobj(compressed, decompressed, _CHUNK_BYTES)
    decompressed.flush()
    return decompressed


def _lines(file: IO[bytes]) -> tuple[array.array[int], array.array[int]]:
    """Return where each line that is not blank begins, and where the file ends; and its number."""
    file.seek(0)
    position = len(codecs.BOM_UTF8) if file.read(3) == codecs.BOM_UTF8 else 0
    file.seek(position)
    starts, numbers = array.array("q"), array.array("q")
    for number, line in enumerate(file, start=1):
        if not line.isspace():
            starts.append(position)
            numbers.append(number)
        position += len(line)
    starts.append(position)
    return starts, numbers
