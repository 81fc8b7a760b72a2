"""A JSON Lines file is read as any tool may write it, and its lines keep their numbers."""

from __future__ import annotations

import gzip
import os
from pathlib import Path

import pytest

from torchrl_ckpt.plugin_api.errors import DataError
from torchrl_ckpt.trainer.data_file import DataFile

LINES = [b'{"a": 1}', '{"text": "a\u2028b\u0085c"}'.encode(), b'{"b": 2}']
PLAIN = b"\n".join([LINES[0], b"", b"  \t", LINES[1] + b"\r", LINES[2]])


@pytest.mark.parametrize(
    "content",
    [
        *(PLAIN, PLAIN + b"\n\n", b"\xef\xbb\xbf" + PLAIN, gzip.compress(PLAIN)),
        gzip.compress(b"\xef\xbb\xbf" + PLAIN[:20]) + gzip.compress(PLAIN[20:]),
    ],
    ids=["plain", "last newline", "byte-order mark", "gzip", "gzip in two members"],
)
def test_every_line_is_read_and_has_its_number(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "d.jsonl"
    path.write_bytes(content)
    file = DataFile(path)
    assert len(file) == 3
    for index in (2, 0, 1):
        assert file.line(index) == LINES[index]
    assert [file.number(index) for index in range(3)] == [1, 4, 5]


def test_an_empty_file_has_no_lines(tmp_path: Path) -> None:
    (tmp_path / "d.jsonl").touch()
    assert len(DataFile(tmp_path / "d.jsonl")) == 0


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (gzip.compress(PLAIN)[:-9], "Compressed file ended"),
        (b"\x1f\x8b\x08 no gzip at all", "cannot read"),
        ('{"a": 1}'.encode("utf-16"), "it is in UTF-16"),
    ],
    # Made of the contents they would hold the time, and differ between the workers of pytest.
    ids=["cut off", "not gzip", "UTF-16"],
)
def test_a_file_that_cannot_be_read_is_named(tmp_path: Path, content: bytes, words: str) -> None:
    path = tmp_path / "d.jsonl"
    path.write_bytes(content)
    with pytest.raises(DataError, match=words) as caught:
        DataFile(path)
    assert str(path) in str(caught.value)


def test_what_is_no_file_is_refused_and_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", tmp_path):
        with pytest.raises(DataError, match="it is not a regular file"):
            DataFile(path)
