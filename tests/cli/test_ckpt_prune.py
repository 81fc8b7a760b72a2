"""`ckpt prune` explains, asks, and guesses at nothing."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from torchrl_ckpt.checkpoint import retention
from torchrl_ckpt.checkpoint.layout import Layout
from torchrl_ckpt.launcher.start import only_one
from torchrl_ckpt.plugin_api.durable_files import read_json, write_json


def steps(run: Path) -> list[int]:
    return Layout(run / "checkpoints").steps()


def set_ckpt(run: Path, **settings: object) -> None:
    resolved = read_json(run / "resolved.json")
    resolved["attempt"]["ckpt"] |= settings
    write_json(run / "resolved.json", resolved)


def set_resume_step(run: Path, step: int) -> None:
    resolved = read_json(run / "resolved.json")
    resolved["attempt"]["resume_step"] = step
    write_json(run / "resolved.json", resolved)


def test_a_dry_run_explains_and_removes_nothing(ckpt, run: Path) -> None:
    best = ["--keep-best", "loss", "--component", "trainer", "--direction", "min"]
    done = ckpt("prune", run, "--keep", 1, *best, "--dry-run")
    assert done.code == 0
    assert [" ".join(line.split()) for line in done.out.splitlines()[1:]] == [
        "2 remove not newest 1, not best loss 0.3",
        "4 keep best loss 0.2",
        "6 keep newest 1",
    ]
    assert steps(run) == [2, 4, 6]


def test_yes_removes_what_the_rules_do_not_keep(ckpt, run: Path) -> None:
    done = ckpt("prune", run, "--keep", 1, "--keep-every", 4, "--yes")
    assert done.code == 0
    assert "removed step_2" in done.out
    assert steps(run) == [4, 6]


def test_without_flags_the_recipe_decides(ckpt, run: Path) -> None:
    set_ckpt(run, keep=2, keep_best={"metric": "loss"})
    verdicts = json.loads(ckpt("prune", run, "--dry-run", "--json").out)
    assert [verdict["reasons"] for verdict in verdicts] == [
        ["not newest 2", "not best loss 0.3"],
        ["newest 2", "best loss 0.2"],
        ["newest 2"],
    ]


def test_the_step_resumed_from_stays(ckpt, run: Path) -> None:
    set_resume_step(run, 2)
    assert ckpt("prune", run, "--keep", 1, "--yes").code == 0
    assert steps(run) == [2, 6]


@pytest.mark.parametrize(
    ("flags", "complaint"),
    [
        ([], "nothing says how many"),
        (["--keep-every", 2], "nothing says how many"),
        (["--keep", 1], "say so with `--yes`"),
        (["--keep", 1, "--json"], "say so with `--yes`"),
        (["--keep", 1, "--keep-best", "loss"], "needs `--component` and `--direction`"),
        (["--keep", 1, "--direction", "min"], "belong to `--keep-best`"),
        (
            ["--keep", 1, "--keep-best", "lss", "--component", "trainer", "--direction", "min"],
            "has no 'lss'",
        ),
    ],
)
def test_what_would_have_to_be_guessed_is_refused(
    ckpt, run: Path, flags: list[object], complaint: str
) -> None:
    done = ckpt("prune", run, *flags)
    assert done.code == 2
    assert complaint in done.err
    assert steps(run) == [2, 4, 6]


def test_a_run_that_is_going_on_is_left_alone(ckpt, run: Path) -> None:
    with only_one(run):
        done = ckpt("prune", run, "--keep", 1, "--yes")
    assert done.code == 2
    assert "in use by another run" in done.err
    assert steps(run) == [2, 4, 6]


def test_checkpoints_of_nobody_knows_which_run_are_left_alone(
    ckpt, run: Path, tmp_path: Path
) -> None:
    elsewhere = (run / "checkpoints").rename(tmp_path / "elsewhere")
    done = ckpt("prune", elsewhere, "--keep", 1, "--yes")
    assert done.code == 3
    assert "in no run's directory" in done.err
    assert Layout(elsewhere).steps() == [2, 4, 6]


def test_a_deletion_that_fails_is_no_success(
    ckpt, run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError("no")

    monkeypatch.setattr(retention, "out_of_sight", refuse)
    done = ckpt("prune", run, "--keep", 2, "--yes")
    assert done.code == 4
    assert "could not remove step_2" in done.err
