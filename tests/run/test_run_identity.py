"""A run has one identity for all its starts, which moves with its directory."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from torchrl_ckpt.plugin_api.errors import RunDirectoryDamaged
from torchrl_ckpt.run.directory import next_attempt, read_run_id, settle_run_id


def test_it_is_made_once_and_moves_with_the_directory(tmp_path: Path) -> None:
    run = tmp_path / "outputs/run"
    assert read_run_id(run) is None
    first = settle_run_id(run)
    assert re.fullmatch("[0-9a-f]{32}", first)
    assert settle_run_id(run) == first
    run.rename(tmp_path / "moved")
    assert read_run_id(tmp_path / "moved") == first


def test_two_runs_have_different_ones(tmp_path: Path) -> None:
    assert settle_run_id(tmp_path / "one") != settle_run_id(tmp_path / "other")


@pytest.mark.parametrize(
    "content", ["", "[]", "{}", '{"run_id": 5}', '{"run_id": ""}', "\0\0", "[" * 100_000]
)
def test_a_damaged_one_is_refused_with_what_to_do(tmp_path: Path, content: str) -> None:
    (tmp_path / "run.json").write_text(content)
    with pytest.raises(RunDirectoryDamaged, match=r"run\.json holds no run's identity.*delete it"):
        settle_run_id(tmp_path)


def test_only_its_own_names_count_as_starts(tmp_path: Path) -> None:
    for name in ("attempt_2", "attempt_x", "attempt_9.bak", "attempt_", "attempt_0012"):
        (tmp_path / "logs" / name).mkdir(parents=True)
    assert next_attempt(tmp_path) == 3
