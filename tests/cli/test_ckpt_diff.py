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
    assert "do not count as differences" in done.out
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


def test_the_reported_difference_is_right_for_every_dtype_and_size() -> None:
    generator = torch.Generator().manual_seed(0)
    for dtype in (torch.float32, torch.float64, torch.bfloat16, torch.float16):
        a = torch.randn(300_000, generator=generator).to(dtype)
        b = a.clone()
        b[7::1000] += 0.25
        b[290_001] = -3.0
        found = compare_tensors("t", a, b)
        assert found is not None
        exact = (a.double() - b.double()).abs().max().item()
        largest = a.double().abs().max().item()
        assert found.num_different == (a != b).sum().item()
        assert found.max_abs == pytest.approx(exact, rel=1e-7)
        assert found.relative == pytest.approx(exact / largest, rel=1e-6)


def test_the_reported_difference_is_right_at_the_limits_of_a_dtype() -> None:
    infinite = compare_tensors("t", torch.tensor([math.inf, 1.0]), torch.tensor([math.inf, 2.0]))
    assert infinite is not None
    assert (infinite.num_different, infinite.max_abs) == (1, 1.0)
    large = compare_tensors("t", torch.tensor([3e38]), torch.tensor([-3e38]))
    assert large is not None
    assert large.max_abs == pytest.approx(6e38)
    from_zero = compare_tensors("t", torch.zeros(2), torch.ones(2))
    assert from_zero is not None
    assert from_zero.relative == math.inf
    integers = compare_tensors("t", torch.tensor([255, 0]).byte(), torch.tensor([0, 0]).byte())
    assert integers is not None
    assert integers.max_abs == 255
    assert compare_tensors("t", torch.empty(0, 3), torch.empty(0, 3)) is None
    assert compare_tensors("t", torch.tensor(1.0), torch.tensor(1.0)) is None
