"""`metrics.jsonl` has each step of each component once, also after a crash and a resume."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest

from torchrl_ckpt.run import metrics
from torchrl_ckpt.run.json_lines import Tail
from torchrl_ckpt.run.metrics import MetricsLog

WRITER = """
import sys
from pathlib import Path
from torchrl_ckpt.run.metrics import MetricsLog
log = MetricsLog(Path(sys.argv[1]))
for step in range(200):
    log.write(sys.argv[2], step, {"loss": 0.5, "note": "x" * 500})
"""


def test_a_row_starts_with_component_step_and_time(tmp_path: Path) -> None:
    MetricsLog(tmp_path / "m").write(
        "trainer", 3, {"loss": 0.5, "policy_version": 2, "note": "text"}
    )
    (row,) = metrics.read(tmp_path / "m")
    assert list(row) == ["component", "step", "time", "loss", "policy_version", "note"]
    assert (row["component"], row["step"], row["loss"]) == ("trainer", 3, 0.5)


def test_several_processes_share_the_file_without_mixing_lines(tmp_path: Path) -> None:
    path = tmp_path / "m"
    names = ["trainer", "orchestrator", "evaluation"]
    writers = [subprocess.Popen([sys.executable, "-c", WRITER, path, name]) for name in names]
    assert [writer.wait() for writer in writers] == [0, 0, 0]
    rows = metrics.read(path)
    for name in names:
        assert [row["step"] for row in rows if row["component"] == name] == list(range(200))


def test_nan_and_infinities_can_be_read_back(tmp_path: Path) -> None:
    values = {"loss": math.nan, "grad_norm": math.inf, "low": -math.inf}
    MetricsLog(tmp_path / "m").write("trainer", 1, values)
    (row,) = metrics.read(tmp_path / "m")
    assert (row["loss"], row["grad_norm"], row["low"]) == ("nan", "inf", "-inf")
    assert math.isnan(float(row["loss"]))


def test_lines_that_are_no_rows_are_left_out_and_removed_on_resume(tmp_path: Path) -> None:
    path = tmp_path / "m"
    odd = ["5", "{}", '{"component": "trainer"}', '{"component": 1, "step": 1}', "[" * 100_000]
    odd += [
        '{"component": "trainer", "step": "1"}',
        '{"component": "trainer", "step": 2, "loss": []}',
    ]
    path.write_text("".join(f"{line}\n" for line in odd))
    MetricsLog(path).write("trainer", 1, {"loss": 0.5})
    assert metrics.values_by_step(path, "trainer", "loss") == {1: 0.5}
    metrics.truncate_after(path, 1, backup=tmp_path / "backup")
    assert [row["step"] for row in metrics.read(path)] == [1]
    assert len(path.read_text().splitlines()) == 1


def test_a_fifo_in_place_of_the_file_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "m")
    with pytest.raises(OSError, match="not a file"):
        metrics.read(tmp_path / "m")
    with pytest.raises(OSError, match="not a file"):
        metrics.truncate_after(tmp_path / "m", 1, backup=tmp_path / "backup")


ON_A_FULL_DISK = """
import resource, sys
from pathlib import Path
from torchrl_ckpt.run.metrics import MetricsLog
log = MetricsLog(Path(sys.argv[1]))
log.write("trainer", 1, {"note": "x" * 500})
_, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
resource.setrlimit(resource.RLIMIT_FSIZE, (800, hard))
log.write("trainer", 2, {"note": "x" * 500})
log.write("trainer", 3, {"note": "x" * 500})
print(Path(sys.argv[1]).read_text().count("\\n"), Path(sys.argv[1]).read_text()[-1:] == "\\n")
resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
log.write("trainer", 4, {"note": "x" * 500})
"""


def test_rows_that_do_not_fit_are_written_once_there_is_room(tmp_path: Path) -> None:
    argv = [sys.executable, "-c", ON_A_FULL_DISK, tmp_path / "m"]
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["1", "True"]  # The part of a row that fitted is gone.
    assert "2 rows are kept until there is room" in done.stderr
    assert [row["step"] for row in metrics.read(tmp_path / "m")] == [1, 2, 3, 4]


def test_a_row_after_a_torn_one_stays_whole(tmp_path: Path) -> None:
    path = tmp_path / "m"
    path.write_text('{"component": "trainer", "step": 1, "ti')
    MetricsLog(path).write("trainer", 2, {})
    assert [row["step"] for row in metrics.read(path)] == [2]


def test_a_truncated_last_line_is_skipped(tmp_path: Path) -> None:
    path = tmp_path / "m"
    MetricsLog(path).write("trainer", 1, {})
    with open(path, "ab") as file:
        file.write(b'{"component": "trainer", "step": 2')
    assert [row["step"] for row in metrics.read(path)] == [1]


def test_a_resume_removes_the_rows_of_later_steps_and_keeps_a_backup(tmp_path: Path) -> None:
    path, backup = tmp_path / "m", tmp_path / "before"
    log = MetricsLog(path)
    for step in (1, 2, 3):
        log.write("orchestrator", step, {})
        log.write("trainer", step, {})
    with open(path, "ab") as file:
        file.write(b'{"component": "tra')
    before = path.read_bytes()

    metrics.truncate_after(path, 2, backup=backup)
    log.write("trainer", 3, {})

    rows = [(row["component"], row["step"]) for row in map(json.loads, path.open())]
    assert rows == [
        ("orchestrator", 1),
        ("trainer", 1),
        ("orchestrator", 2),
        ("trainer", 2),
        ("trainer", 3),
    ]
    assert backup.read_bytes() == before


def test_no_backup_is_made_where_no_row_is_removed(tmp_path: Path) -> None:
    path, backup = tmp_path / "m", tmp_path / "before"
    metrics.truncate_after(path, 2, backup=backup)
    assert not path.exists()
    MetricsLog(path).write("trainer", 2, {})
    metrics.truncate_after(path, 2, backup=backup)
    assert not backup.exists()


def test_a_tail_returns_each_row_once_and_only_when_it_is_complete(tmp_path: Path) -> None:
    path = tmp_path / "m"
    tail = Tail(path)
    assert tail.read() == []
    MetricsLog(path).write("trainer", 1, {})
    with open(path, "ab") as file:
        file.write(b'{"step":')
    assert [row["step"] for row in tail.read()] == [1]
    with open(path, "ab") as file:
        file.write(b" 2}\n")
    assert tail.read() == [{"step": 2}]
    assert tail.read() == []


def test_a_tail_can_skip_the_rows_of_earlier_attempts(tmp_path: Path) -> None:
    path = tmp_path / "m"
    MetricsLog(path).write("trainer", 1, {})
    tail = Tail(path, skip_existing=True)
    MetricsLog(path).write("trainer", 2, {})
    assert [row["step"] for row in tail.read()] == [2]


def test_the_values_of_one_metric_are_read_by_step(tmp_path: Path) -> None:
    log = MetricsLog(tmp_path / "m")
    log.write("trainer", 1, {"loss": math.inf})
    log.write("evaluation", 1, {"loss": 9.0, "reward/mean": 0.25})
    log.write("trainer", 2, {"loss": 0.5})
    log.write("trainer", 3, {"grad_norm": 1.0})
    assert metrics.values_by_step(tmp_path / "m", "trainer", "loss") == {1: math.inf, 2: 0.5}
    assert metrics.values_by_step(tmp_path / "m", "evaluation", "reward/mean") == {1: 0.25}
    assert metrics.values_by_step(tmp_path / "missing", "trainer", "loss") == {}
