"""`ckpt ls` lists every checkpoint, complete or not, and marks the one that a resume takes."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from tests.support.ckpt_command import CkptCommand
from torchrl_ckpt.checkpoint.layout import Layout


def test_the_table_has_a_row_for_each_and_a_star_at_the_newest(
    ckpt: CkptCommand, run: Path
) -> None:
    done = ckpt("ls", run)
    assert done.exit_code == 0
    steps = [line.split()[0] for line in done.out.splitlines()[1:]]
    assert steps == ["2", "4", "6"]
    assert next(line for line in done.out.splitlines() if "*" in line).split()[0] == "6"


def test_each_state_is_named(ckpt: CkptCommand, run: Path) -> None:
    layout = Layout(run / "checkpoints")
    layout.partial(8).mkdir()
    layout.quarantine(5).mkdir(parents=True)
    layout.step(2).rename(layout.deleting(2))
    (layout.step(6) / "manifest.json").write_text("{")
    listing = json.loads(ckpt("ls", run, "--json").out)
    assert [(entry["step"], entry["state"], entry["newest"]) for entry in listing] == [
        (2, "deleting", False),
        (4, "committed", False),
        (5, "quarantined", False),
        (6, "damaged", True),
        (8, "partial", False),
    ]


def test_of_very_many_the_last_100_are_shown_and_the_others_counted(
    ckpt: CkptCommand, run: Path
) -> None:
    layout = Layout(run / "checkpoints")
    for step in range(100, 300):
        shutil.copytree(layout.step(6), layout.step(step))
    lines = ckpt("ls", run).out.splitlines()
    assert [line.split()[0] for line in lines[1:-1]] == [str(step) for step in range(200, 300)]
    assert lines[-1].split()[:2] == ["and", "103"]
    assert len(ckpt("ls", run, "--all").out.splitlines()) == 204
    assert len(json.loads(ckpt("ls", run, "--json").out)) == 203


def test_a_run_without_checkpoints_is_an_error(ckpt: CkptCommand, tmp_path: Path) -> None:
    (tmp_path / "checkpoints").mkdir()
    done = ckpt("ls", tmp_path)
    assert (done.exit_code, done.out) == (3, "")
    assert "no checkpoint in" in done.err
