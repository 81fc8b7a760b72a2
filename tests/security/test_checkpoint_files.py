"""Files of a checkpoint that somebody else made: nothing is executed, followed or waited for."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.support.ckpt_command import CkptCommand
from tests.support.commands import BIN
from tests.support.crafted_manifests import ODD_FIELDS, ODD_TEXTS, edit_manifest
from torchrl_ckpt.checkpoint.layout import MANIFEST, Layout
from torchrl_ckpt.checkpoint.locate import find
from torchrl_ckpt.checkpoint.resume import choose
from torchrl_ckpt.plugin_api.durable_files import digest_file, read_json, write_json
from torchrl_ckpt.plugin_api.errors import (
    CheckpointDamaged,
    OutsideDirectory,
    RunDirectoryUnwritable,
)


@pytest.mark.parametrize("what", [*ODD_FIELDS, *ODD_TEXTS])
def test_an_odd_manifest_is_damage_and_latest_steps_back(
    what: str, run: Path, ckpt: CkptCommand, tmp_path: Path
) -> None:
    step = run / "checkpoints/step_6"
    if what in ODD_FIELDS:
        edit_manifest(step, ODD_FIELDS[what])
    else:
        (step / MANIFEST).write_text(ODD_TEXTS[what])
    for command in ("inspect", "verify", "export", "fork", "diff"):
        more = [tmp_path / "new"] if command in ("export", "fork") else []
        more = [run / "checkpoints/step_4"] if command == "diff" else more
        done = ckpt(command, step, *more)
        assert done.exit_code == CheckpointDamaged.exit_code, (command, done.err)
    assert ckpt("ls", run).exit_code == 0
    assert [path.name for path in tmp_path.iterdir()] == ["run"]
    assert choose(Layout(run / "checkpoints"), "latest", quarantine=False).step == 4


@pytest.mark.parametrize(
    "edit",
    [
        pytest.param(lambda recipe: recipe.clear(), id="empty"),
        pytest.param(lambda recipe: recipe.update(ckpt=7), id="ckpt of another type"),
        pytest.param(lambda recipe: recipe["ckpt"].update(directory=[]), id="a list for a path"),
        pytest.param(lambda recipe: recipe["ckpt"].update(backend={"type": 7}), id="no backend"),
        pytest.param(lambda recipe: recipe.update(model=None), id="no model"),
    ],
)
def test_an_odd_recipe_in_a_manifest_is_damage(
    edit: Callable[[dict[str, Any]], Any], run: Path, ckpt: CkptCommand, tmp_path: Path
) -> None:
    step = run / "checkpoints/step_6"
    edit_manifest(step, lambda content: edit(content["recipe"]))
    codes = {
        ckpt("inspect", step).exit_code,
        ckpt("export", step, tmp_path / "exported").exit_code,
        ckpt("fork", step, tmp_path / "forked").exit_code,
    }
    assert codes <= {0, CheckpointDamaged.exit_code}
    assert CheckpointDamaged.exit_code in codes


@pytest.mark.parametrize("what", ["fifo", "device", "link", "directory that is a link"])
def test_what_is_no_file_of_the_checkpoint_is_not_opened(
    what: str, run: Path, ckpt: CkptCommand, tmp_path: Path
) -> None:
    directory = run / "checkpoints/step_6"
    path = directory / "trainer/state.json"
    match what:
        case "fifo":
            path.unlink()
            os.mkfifo(path)
        case "device":
            path.unlink()
            path.symlink_to("/dev/zero")
        case "link":
            path.rename(tmp_path / "state.json")
            path.symlink_to(tmp_path / "state.json")
        case _:
            (directory / "trainer").rename(tmp_path / "trainer")
            (directory / "trainer").symlink_to(tmp_path / "trainer")
    command = [BIN / "torchrl-ckpt", "ckpt", "verify", directory]
    done = subprocess.run(command, capture_output=True, text=True, timeout=20)
    assert done.returncode == CheckpointDamaged.exit_code
    assert "state.json cannot be read (" in done.stdout
    for link in ([], ["--link"]):
        done_fork = ckpt("fork", run, tmp_path / "new", "--step", 6, *link)
        assert done_fork.exit_code == CheckpointDamaged.exit_code


@pytest.mark.parametrize("name", ["manifest.json", "resolved.json"])
def test_a_fifo_in_place_of_a_record_is_not_waited_for(name: str, run: Path) -> None:
    path = run / name if name == "resolved.json" else run / "checkpoints/step_6" / name
    path.unlink()
    os.mkfifo(path)
    for command in ("ls", "verify", "inspect"):
        argv = [BIN / "torchrl-ckpt", "ckpt", command, run, *(["--step", 6] * (command != "ls"))]
        done = subprocess.run([*map(str, argv)], capture_output=True, text=True, timeout=30)
        assert "Traceback" not in done.stderr
        if name == "manifest.json" and command != "ls":
            assert done.returncode != 0  # For the others it is damage, or no step at all.


def test_a_file_that_something_else_left_is_a_warning(run: Path, ckpt: CkptCommand) -> None:
    (run / "checkpoints/step_6/trainer/.nfs0000000000a1").write_text("?")
    done = ckpt("verify", run, "--step", 6)
    assert done.exit_code == 0
    assert "warning: 'trainer/.nfs0000000000a1' is not part of it" in done.out
    (result,) = json.loads(ckpt("verify", run, "--step", 6, "--json").out)
    assert result["state"] == "good"
    assert len(result["warnings"]) == 1
    assert choose(Layout(run / "checkpoints"), "latest").step == 6


def _point_elsewhere(foreign: Path, how: str, target: Path) -> None:
    """Let the run `foreign`, which has no checkpoints of its own, have those in `target`."""
    shutil.rmtree(foreign / "checkpoints")
    if how == "link":
        (foreign / "checkpoints").symlink_to(target)
        return
    directory = str(target) if how == "absolute" else os.path.relpath(target, foreign)
    resolved = read_json(foreign / "resolved.json")
    resolved["attempt"]["ckpt"]["directory"] = directory
    write_json(foreign / "resolved.json", resolved)


@pytest.mark.parametrize("how", ["absolute", "above", "link"])
def test_a_foreign_run_cannot_name_checkpoints_outside_of_it(
    how: str, run: Path, ckpt: CkptCommand, tmp_path: Path
) -> None:
    foreign = shutil.copytree(run, tmp_path / "foreign")
    _point_elsewhere(foreign, how, run / "checkpoints")
    for command, *arguments in (
        ("prune", "--keep", 1, "--yes"),
        ("ls",),
        ("verify",),
        ("inspect",),
        ("export", tmp_path / "new"),
        ("fork", tmp_path / "new"),
        ("diff", run),
    ):
        done = ckpt(command, foreign, *arguments)
        assert done.exit_code == OutsideDirectory.exit_code
        assert "outside of it" in done.err
    with pytest.raises(OutsideDirectory):
        find(foreign)
    assert Layout(run / "checkpoints").steps() == [2, 4, 6]


@pytest.mark.parametrize("content", ["", "[]", "{" * 5000, '{"attempt": {"ckpt": 7}}', "\0"])
def test_an_odd_record_of_a_run_is_an_error_that_says_where(
    content: str, run: Path, ckpt: CkptCommand
) -> None:
    (run / "resolved.json").write_text(content)
    done = ckpt("ls", run)
    assert done.exit_code == 2
    assert "resolved.json is not the record of a run" in done.err
    assert ckpt("ls", run / "checkpoints").exit_code == 0


@pytest.mark.parametrize("directory", ["{}/elsewhere", "../elsewhere"])
def test_a_fork_writes_below_its_target_whatever_the_manifest_says(
    directory: str, run: Path, ckpt: CkptCommand, tmp_path: Path
) -> None:
    def name_elsewhere(content: dict[str, Any]) -> None:
        content["recipe"]["ckpt"]["directory"] = directory.format(tmp_path)

    edit_manifest(run / "checkpoints/step_6", name_elsewhere)
    done = ckpt("fork", run, tmp_path / "new")
    assert done.exit_code == 0
    assert "--ckpt.directory checkpoints --ckpt.resume-step 6" in done.out
    assert Layout(tmp_path / "new/checkpoints").steps() == [6]
    assert not (tmp_path / "elsewhere").exists()


@pytest.mark.parametrize("lock", [".lock", "checkpoints/.lock"])
def test_a_lock_that_is_a_link_does_not_overwrite_what_it_leads_to(
    lock: str, run: Path, ckpt: CkptCommand, tmp_path: Path
) -> None:
    (precious := tmp_path / "precious").write_text("all of my work")
    (run / lock).unlink(missing_ok=True)
    (run / lock).symlink_to(precious)
    done = ckpt("prune", run, "--keep", 1, "--yes")
    assert done.exit_code == RunDirectoryUnwritable.exit_code
    assert precious.read_text() == "all of my work"
    assert Layout(run / "checkpoints").steps() == [2, 4, 6]


@pytest.mark.parametrize("name", [".lock", "checkpoints/.lock", "run.json"])
def test_prune_does_not_wait_for_a_fifo(name: str, run: Path) -> None:
    (run / name).unlink(missing_ok=True)
    os.mkfifo(run / name)
    argv = [BIN / "torchrl-ckpt", "ckpt", "prune", run, "--keep", "1", "--yes"]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=30)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("target", ["/", ".step_9.partial"])
def test_a_link_in_place_of_a_checkpoint_is_not_followed(
    target: str, run: Path, ckpt: CkptCommand
) -> None:
    (run / "checkpoints/.step_9.partial").symlink_to(target)
    done = ckpt("ls", run, "--json")
    assert done.exit_code == 0
    assert [(entry["step"], entry["size"]) for entry in json.loads(done.out)][-1] == (9, 0)


_ESCAPES = "\x1b]0;title\x07\x1b[31m\x9b2J"


def _escapes_in_manifest(run: Path) -> None:
    def edit(content: dict[str, Any]) -> None:
        content["versions"][_ESCAPES] = _ESCAPES
        content["plugins"][_ESCAPES] = dict.fromkeys(("name", "distribution", "version"), _ESCAPES)
        content["recipe"]["loss"]["type"] = _ESCAPES

    edit_manifest(run / "checkpoints/step_6", edit)


def _escapes_in_state(run: Path) -> None:
    path = run / "checkpoints/step_6/trainer/state.json"
    write_json(path, {**read_json(path), _ESCAPES: _ESCAPES})
    edit_manifest(run / "checkpoints/step_6", lambda content: _record_anew(content, path))


def _record_anew(content: dict[str, Any], path: Path) -> None:
    (file,) = (file for file in content["files"] if file["path"] == "trainer/state.json")
    file["size"], file["digest"] = digest_file(path)


def _escapes_in_name(run: Path) -> None:
    (part := run / "checkpoints/.step_9.partial" / _ESCAPES).mkdir(parents=True)
    (part / "part.json").write_text("")


def _escapes_in_directory(run: Path) -> None:
    resolved = read_json(run / "resolved.json")
    resolved["attempt"]["ckpt"]["directory"] = f"/{_ESCAPES}"
    write_json(run / "resolved.json", resolved)


@pytest.mark.parametrize(
    ("arrange", "command"),
    [
        (_escapes_in_manifest, "inspect"),
        (_escapes_in_state, "diff"),
        (_escapes_in_name, "ls"),
        (_escapes_in_directory, "ls"),
    ],
)
def test_no_control_character_of_a_file_reaches_the_terminal(
    arrange: Callable[[Path], None], command: str, run: Path, ckpt: CkptCommand
) -> None:
    arrange(run)
    done = ckpt(command, run, *([run / "checkpoints/step_4"] if command == "diff" else []))
    assert "title" in done.out + done.err
    assert not [c for c in done.out + done.err if c != "\n" and not c.isprintable()]
