"""`ckpt diff` finds every difference of state, says how large it is, and nothing else."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path

import pytest
import torch

from torchrl_ckpt.inspection import differences


def test_a_copy_is_equal(ckpt, run: Path, tmp_path: Path) -> None:
    shutil.copytree(run, tmp_path / "copy")
    done = ckpt("diff", run, tmp_path / "copy")
    assert done.code == 0
    assert "same state, to the bit" in done.out


def test_what_differs_is_measured(ckpt, run: Path) -> None:
    done = ckpt("diff", run / "checkpoints/step_2", run / "checkpoints/step_4", "--json")
    found = json.loads(done.out)
    assert done.code == 1
    (tensor,) = found["tensors"]
    assert tensor["name"] == "model.model.norm.weight"
    assert (tensor["num_different"], tensor["num_elements"]) == (16, 16)
    assert (tensor["max_abs"], tensor["relative"]) == (2.0, pytest.approx(2 / 3))
    values = {(value["where"], value["key"]): value["b"] for value in found["values"]}
    assert values["trainer/state.json", "progress.tokens"] == 256
    assert values["trainer/rng/rank_0.json", "torch"].endswith("04")
    assert not any("optimizer" in key for _, key in values)


def test_people_see_it_in_tables(ckpt, run: Path) -> None:
    out = ckpt("diff", run / "checkpoints/step_2", run / "checkpoints/step_4").out
    rows = [line.split() for line in out.splitlines()]
    assert ["model.model.norm.weight", "16", "of", "16", "2", "0.667"] in rows
    assert ["progress.step", "2", "4"] in rows


def test_a_damaged_one_is_not_compared(ckpt, run: Path) -> None:
    (run / "checkpoints/step_4/trainer/state.json").write_text("{}")
    done = ckpt("diff", run / "checkpoints/step_2", run / "checkpoints/step_4")
    assert done.code == 4
    assert "state.json" in done.err


class Stored:
    """What `StoredTensors` is to the comparison."""

    def __init__(self, *values: float) -> None:
        self.tensor = torch.tensor(values)

    def read(self, names: list[str]) -> dict[str, torch.Tensor]:
        return dict.fromkeys(names, self.tensor)


def test_bits_decide_and_not_values() -> None:
    def compared(one: Stored, other: Stored) -> list[differences.TensorDifference]:
        return list(differences._compare_tensors(one, other, ["t"]))  # type: ignore[arg-type]

    assert compared(Stored(math.nan, 1.0), Stored(math.nan, 1.0)) == []
    (zero,) = compared(Stored(0.0, 1.0), Stored(-0.0, 1.0))
    assert (zero.num_different, zero.max_abs) == (1, 0.0)
    (gone,) = compared(Stored(math.nan, 1.0), Stored(2.0, 1.5))
    assert gone.num_different == 2
    assert math.isnan(gone.max_abs)
