"""`ckpt prune` explains what it removes, asks first, and guesses nothing."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from tests.support.ckpt_command import CkptCommand
from torchrl_ckpt.checkpoint.layout import Layout
from torchrl_ckpt.plugin_api.durable_files import read_json, write_json
from torchrl_ckpt.run.run_lock import locked_run


def steps(run: Path) -> list[int]:
    return Layout(run / "checkpoints").steps()


def set_ckpt(run: Path, **options: object) -> None:
    """Change `ckpt` of the run's recipe."""
    resolved = read_json(run / "resolved.json")
    resolved["attempt"]["ckpt"] |= options
    write_json(run / "resolved.json", resolved)


def set_resume_step(run: Path, step: int) -> None:
    resolved = read_json(run / "resolved.json")
    resolved["attempt"]["resume_step"] = step
    write_json(run / "resolved.json", resolved)


def test_a_dry_run_explains_and_removes_nothing(ckpt: CkptCommand, run: Path) -> None:
    best = ["--keep-best", "loss", "--component", "trainer", "--direction", "min"]
    done = ckpt("prune", run, "--keep", 1, *best, "--dry-run")
    assert done.exit_code == 0
    assert [" ".join(line.split()) for line in done.out.splitlines()[1:]] == [
        "2 remove not newest 1, not best loss 0.3",
        "4 keep best loss 0.2",
        "6 keep newest 1",
    ]
    assert steps(run) == [2, 4, 6]


def test_yes_removes_what_no_rule_keeps(ckpt: CkptCommand, run: Path) -> None:
    done = ckpt("prune", run, "--keep", 1, "--keep-every", 4, "--yes")
    assert done.exit_code == 0
    assert "removed step_2" in done.out
    assert steps(run) == [4, 6]


def test_without_options_the_rules_of_the_recipe_apply(ckpt: CkptCommand, run: Path) -> None:
    set_ckpt(run, keep=2, keep_best={"metric": "loss"})
    verdicts = json.loads(ckpt("prune", run, "--dry-run", "--json").out)
    assert [verdict["reasons"] for verdict in verdicts] == [
        ["not newest 2", "not best loss 0.3"],
        ["newest 2", "best loss 0.2"],
        ["newest 2"],
    ]


def test_the_step_that_the_run_was_resumed_from_is_kept(ckpt: CkptCommand, run: Path) -> None:
    set_resume_step(run, 2)
    assert ckpt("prune", run, "--keep", 1, "--yes").exit_code == 0
    assert steps(run) == [2, 6]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "no rule says how many"),
        (["--keep-every", 2], "no rule says how many"),
        (["--keep", 1], "confirm with `--yes`"),
        (["--keep", 1, "--json"], "confirm with `--yes`"),
        (["--keep", 1, "--keep-best", "loss"], "needs `--component` and `--direction`"),
        (["--keep", 1, "--direction", "min"], "need `--keep-best`"),
        (
            ["--keep", 1, "--keep-best", "lss", "--component", "trainer", "--direction", "min"],
            "has no metric 'lss'",
        ),
    ],
)
def test_what_would_have_to_be_guessed_is_refused(
    ckpt: CkptCommand, run: Path, options: list[object], message: str
) -> None:
    done = ckpt("prune", run, *options)
    assert done.exit_code == 2
    assert message in done.err
    assert steps(run) == [2, 4, 6]


def test_an_active_run_is_refused(ckpt: CkptCommand, run: Path) -> None:
    with locked_run(run, "rl"):
        done = ckpt("prune", run, "--keep", 1, "--yes")
    assert done.exit_code == 2
    assert "in use by `rl` (process" in done.err
    assert steps(run) == [2, 4, 6]


def test_checkpoints_of_an_unknown_run_are_refused(
    ckpt: CkptCommand, run: Path, tmp_path: Path
) -> None:
    elsewhere = (run / "checkpoints").rename(tmp_path / "elsewhere")
    done = ckpt("prune", elsewhere, "--keep", 1, "--yes")
    assert done.exit_code == 3
    assert "not in a run's directory" in done.err
    assert Layout(elsewhere).steps() == [2, 4, 6]


def test_a_deletion_that_fails_is_an_error(ckpt: CkptCommand, run: Path) -> None:
    layout = Layout(run / "checkpoints")
    layout.deleting(2).write_text("a file, where the deletion needs a directory")
    done = ckpt("prune", run, "--keep", 2, "--yes")
    assert done.exit_code == 4
    assert "could not remove step_2" in done.err
    assert steps(run) == [2, 4, 6]


def test_the_verdicts_are_those_on_the_checkpoints_that_are_there(
    ckpt: CkptCommand, run: Path
) -> None:
    shutil.rmtree(run / "checkpoints/step_2")
    verdicts = json.loads(ckpt("prune", run, "--keep", 1, "--yes", "--json").out)
    assert [(verdict["step"], verdict["kept"]) for verdict in verdicts] == [(4, False), (6, True)]
    assert steps(run) == [6]
