"""`ckpt verify` ends with an exit code that scripts can trust."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from tests.support.ckpt_command import CkptCommand
from torchrl_ckpt.checkpoint import manifest
from torchrl_ckpt.plugin_api.durable_files import read_json


def test_good_checkpoints_are_listed_and_the_exit_code_is_0(ckpt: CkptCommand, run: Path) -> None:
    done = ckpt("verify", run)
    assert done.exit_code == 0
    assert [line.split()[:2] for line in done.out.splitlines()] == [
        ["step_2", "good"],
        ["step_4", "good"],
        ["step_6", "good"],
    ]


@pytest.mark.parametrize("file", ["trainer/state.json", "trainer/tensors/.metadata"])
def test_a_damaged_file_is_named_and_the_exit_code_is_4(
    ckpt: CkptCommand, run: Path, file: str
) -> None:
    path = run / "checkpoints/step_4" / file
    path.write_bytes(path.read_bytes()[:-1] + b"?")
    done = ckpt("verify", run)
    assert done.exit_code == 4
    assert f"{file} has changed" in done.out
    assert done.out.count("good") == 2
    assert ckpt("verify", run, "--step", 2).exit_code == 0
    assert ckpt("verify", run, "--step", 4).exit_code == 4


def test_a_step_without_a_manifest_is_damaged(ckpt: CkptCommand, run: Path) -> None:
    (run / "checkpoints/step_4/manifest.json").unlink()
    done = ckpt("verify", run, "--json")
    assert done.exit_code == 4
    states = {Path(r["path"]).name: r["state"] for r in json.loads(done.out)}
    assert states == {"step_2": "good", "step_4": "damaged", "step_6": "good"}


def test_a_checkpoint_of_another_format_is_named_and_the_others_are_verified(
    ckpt: CkptCommand, run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = run / "checkpoints/step_4"
    content = read_json(other / "manifest.json")
    del content["seal"]
    (other / "manifest.json").unlink()
    with monkeypatch.context() as patch:
        patch.setattr(manifest, "FORMAT", 1)
        manifest.write_manifest(other, content)
    done = ckpt("verify", run)
    assert done.exit_code == 3
    assert [" ".join(line.split()[1:3]) for line in done.out.splitlines()][1] == "other format"
    assert done.out.count("good") == 2


def test_without_a_checkpoint_the_exit_code_is_3(ckpt: CkptCommand, run: Path) -> None:
    assert ckpt("verify", run, "--step", 3).exit_code == 3
    shutil.rmtree(run / "checkpoints")
    assert ckpt("verify", run).exit_code == 3
    assert ckpt("verify", run / "nothing").exit_code == 3
