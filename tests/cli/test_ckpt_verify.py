"""`ckpt verify` ends with a code that scripts can trust."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest


def test_good_ones_are_counted_and_the_code_is_0(ckpt, run: Path) -> None:
    done = ckpt("verify", run)
    assert done.code == 0
    assert [line.split()[:2] for line in done.out.splitlines()] == [
        ["step_2", "good"],
        ["step_4", "good"],
        ["step_6", "good"],
    ]


@pytest.mark.parametrize("file", ["trainer/state.json", "trainer/tensors/.metadata"])
def test_a_damaged_file_is_named_and_the_code_is_4(ckpt, run: Path, file: str) -> None:
    path = run / "checkpoints/step_4" / file
    path.write_bytes(path.read_bytes()[:-1] + b"?")
    done = ckpt("verify", run)
    assert done.code == 4
    assert f"{file} has changed" in done.out
    assert done.out.count("good") == 2
    assert ckpt("verify", run, "--step", 2).code == 0
    assert ckpt("verify", run, "--step", 4).code == 4


def test_a_step_that_has_lost_its_manifest_is_not_overlooked(ckpt, run: Path) -> None:
    (run / "checkpoints/step_4/manifest.json").unlink()
    done = ckpt("verify", run, "--json")
    assert done.code == 4
    states = {Path(r["path"]).name: r["state"] for r in json.loads(done.out)}
    assert states == {"step_2": "good", "step_4": "damaged", "step_6": "good"}


def test_nothing_there_is_3(ckpt, run: Path) -> None:
    assert ckpt("verify", run, "--step", 3).code == 3
    shutil.rmtree(run / "checkpoints")
    assert ckpt("verify", run).code == 3
    assert ckpt("verify", run / "nothing").code == 3
