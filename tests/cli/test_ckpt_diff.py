"""`ckpt diff` shows every difference of state and its size, and nothing else."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path

import pytest
import torch

from tests.support.ckpt_command import CkptCommand
from torchrl_ckpt.inspection.differences import TensorDifference, compare_tensors


def test_a_copy_is_equal(ckpt: CkptCommand, run: Path, tmp_path: Path) -> None:
    shutil.copytree(run, tmp_path / "copy")
    done = ckpt("diff", run, tmp_path / "copy")
    assert done.exit_code == 0
    assert "bitwise identical" in done.out


def test_what_differs_is_measured(ckpt: CkptCommand, run: Path) -> None:
    done = ckpt("diff", run / "checkpoints/step_2", run / "checkpoints/step_4", "--json")
    found = json.loads(done.out)
    assert done.exit_code == 1
    (tensor,) = found["tensors"]
    assert tensor["name"] == "model.model.norm.weight"
    assert (tensor["num_different"], tensor["num_elements"]) == (16, 16)
    assert (tensor["max_abs"], tensor["relative"]) == (2.0, pytest.approx(2 / 3))
    values = {(value["where"], value["key"]): value["b"] for value in found["values"]}
    assert values["trainer/state.json", "progress.tokens"] == 256
    assert values["trainer/rng/rank_0.json", "torch"].endswith("04")
    assert not any("optimizer" in key for _, key in values)


def test_the_differences_are_shown_in_tables(ckpt: CkptCommand, run: Path) -> None:
    out = ckpt("diff", run / "checkpoints/step_2", run / "checkpoints/step_4").out
    rows = [line.split() for line in out.splitlines()]
    assert ["model.model.norm.weight", "16", "of", "16", "2", "0.667"] in rows
    assert ["progress.step", "2", "4"] in rows


def test_a_damaged_checkpoint_is_not_compared(ckpt: CkptCommand, run: Path) -> None:
    (run / "checkpoints/step_4/trainer/state.json").write_text("{}")
    done = ckpt("diff", run / "checkpoints/step_2", run / "checkpoints/step_4")
    assert done.exit_code == 4
    assert "state.json" in done.err


def test_bits_decide_and_not_values() -> None:
    def compared(a: list[float], b: list[float]) -> TensorDifference | None:
        return compare_tensors("t", torch.tensor(a), torch.tensor(b))

    assert compared([math.nan, 1.0], [math.nan, 1.0]) is None
    signed_zero = compared([0.0, 1.0], [-0.0, 1.0])
    assert signed_zero is not None
    assert (signed_zero.num_different, signed_zero.max_abs) == (1, 0.0)
    without_nan = compared([math.nan, 1.0], [2.0, 1.5])
    assert without_nan is not None
    assert without_nan.num_different == 2
    assert math.isnan(without_nan.max_abs)
