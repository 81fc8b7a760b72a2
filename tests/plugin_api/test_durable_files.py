"""Files are whole or absent, and their digests are those of the bytes that were written."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from torchrl_ckpt.plugin_api.durable_files import (
    digest_file,
    read_json,
    record_json,
    recorded_file,
    write_json,
)

OVERWRITE_FOR_EVER = """
import sys; from pathlib import Path; from torchrl_ckpt.plugin_api.durable_files import write_json
n = 0
while True:
    write_json(Path(sys.argv[1]), {"step": n, "filler": "x" * 200_000, "again": n}); n += 1
"""


def test_a_kill_never_leaves_a_torn_file(tmp_path: Path) -> None:
    path = tmp_path / "progress.json"
    for delay in range(8):
        writer = subprocess.Popen([sys.executable, "-c", OVERWRITE_FOR_EVER, path])
        while not path.exists():
            time.sleep(0.001)
        time.sleep(0.013 * delay)
        writer.kill()
        writer.wait()
        found = read_json(path)
        assert found["step"] == found["again"]


def test_a_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    write_json(path, {"good": True})
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(path, {"bad": float("nan")})
    assert read_json(path) == {"good": True}
    assert os.listdir(tmp_path) == ["a.json"]


def test_a_record_describes_the_bytes_written_and_not_those_on_disk_now(tmp_path: Path) -> None:
    with recorded_file(tmp_path, "deep/down/data") as (stream, records):
        stream.write(b"abc")
        stream.write(memoryview(bytearray(b"def")))
        assert records == []
    path = tmp_path / "deep/down/data"
    assert (records[0].size, records[0].digest) == digest_file(path)
    path.write_bytes(b"abcdeF")
    assert digest_file(path) != (records[0].size, records[0].digest)


def test_a_json_file_is_recorded_under_its_relative_path(tmp_path: Path) -> None:
    record = record_json(tmp_path, "rng/rank_0.json", {"b": [1, 2], "a": None})
    assert record.path == "rng/rank_0.json"
    assert (record.size, record.digest) == digest_file(tmp_path / record.path)
    assert read_json(tmp_path / record.path) == {"a": None, "b": [1, 2]}


def test_progress_counts_every_byte_once(tmp_path: Path) -> None:
    path = tmp_path / "data"
    path.write_bytes(bytes(3 * 1024 * 1024 + 7))
    counts: list[int] = []
    size, _ = digest_file(path, counts.append)
    assert sum(counts) == size == path.stat().st_size
