"""`ckpt diff` shows every difference of state and its size, and nothing else."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path

import pytest
import torch

from tests.support.ckpt_command import CkptCommand
from torchrl_ckpt.checkpoint.commit import commit, request, wait_for_parts
from torchrl_ckpt.checkpoint.layout import Layout
from torchrl_ckpt.checkpoint.part import finish_part, open_part
from torchrl_ckpt.inspection.differences import TensorDifference, compare_tensors
from torchrl_ckpt.plugin_api.durable_files import record_json


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


def _commit_batch(layout: Layout, **batch: object) -> Path:
    """A checkpoint that carries a batch and nothing else."""
    partial = request(layout, 2, ["orchestrator"])
    directory = open_part(partial, "orchestrator")
    content = {"step": 3, "problems": ["a"], "metrics": {"reward/mean": 0.5}, **batch}
    finish_part(directory, [record_json(directory, "rollouts/step_3/batch.json", content)])
    records = wait_for_parts(partial, ["orchestrator"], timeout=1)
    return commit(layout, 2, ["orchestrator"], records, {})


def test_which_start_made_a_carried_batch_is_shown_and_does_not_count(
    ckpt: CkptCommand, tmp_path: Path
) -> None:
    one = {"attempt_id": "1", "weights_ids": ["x"], "metrics": {"generate_seconds": 1.5}}
    other = {"attempt_id": "2", "weights_ids": ["y"], "metrics": {"generate_seconds": 2.5}}
    a = _commit_batch(Layout(tmp_path / "a"), **one)
    b = _commit_batch(Layout(tmp_path / "b"), **other)
    done = ckpt("diff", a, b)
    assert done.exit_code == 0
    assert "which does not count" in done.out
    assert "bitwise identical" in done.out
    found = json.loads(ckpt("diff", a, b, "--json").out)
    assert found["values"] == []
    keys = {value["key"] for value in found["information"]}
    assert keys == {"attempt_id", "weights_ids", "metrics.generate_seconds"}
    c = _commit_batch(Layout(tmp_path / "c"), **(other | {"problems": ["b"]}))
    assert ckpt("diff", a, c).exit_code == 1


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
