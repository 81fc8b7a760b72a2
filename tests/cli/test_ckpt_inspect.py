"""`ckpt inspect` shows what a checkpoint holds without loading it."""

from __future__ import annotations

import json
import os
import pickle
from pathlib import Path

import pytest
import torch

from tests.support.ckpt_command import CkptCommand
from tests.support.saved_run import NORM, process_group, save_checkpoint
from tests.support.site_packages import SitePackages
from torchrl_ckpt.checkpoint.layout import Layout

OPAQUE_BACKEND = """
class OpaqueBackend:
    plugin_api = 1
    file_format = "opaque"
    in_background = False

    def prepare(self, state, group): ...
    def save(self, state, directory, group): ...
    def load(self, state, directory, group): ...
    def close(self): ...
"""
"""A checkpoint backend with the methods that the contract demands, and no others."""


def test_it_shows_progress_recipe_plugins_and_every_tensor(ckpt: CkptCommand, run: Path) -> None:
    done = ckpt("inspect", run, "--step", 4)
    assert done.exit_code == 0
    assert "samples 32, step 4, tokens 256" in done.out
    assert "architecture qwen3" in done.out
    assert "dcp, of torchrl-ckpt 0.1.0" in done.out
    row = next(line for line in done.out.splitlines() if line.startswith(NORM))
    assert row.split() == [NORM, "float32", "[16]", "16"]


def test_the_json_has_the_whole_manifest(ckpt: CkptCommand, run: Path) -> None:
    shown = json.loads(ckpt("inspect", run, "--json").out)
    assert shown["manifest"]["step"] == 6
    assert shown["manifest"]["recipe"]["max_steps"] == 6
    assert {"name": NORM, "shape": [16], "dtype": "float32"} in shown["tensors"]


def test_it_executes_nothing(ckpt: CkptCommand, run: Path, tmp_path: Path) -> None:
    class Exploit:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return (os.mkdir, (str(tmp_path / "executed"),))

    metadata = run / "checkpoints/step_6/trainer/tensors/.metadata"
    metadata.write_bytes(pickle.dumps(Exploit()))
    done = ckpt("inspect", run)
    assert done.exit_code == 4
    assert "None of it was executed" in done.err
    assert not (tmp_path / "executed").exists()


def test_a_backend_that_cannot_show_tensors_is_named_after_the_summary(
    ckpt: CkptCommand, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    site = tmp_path / "site"
    site.mkdir()
    monkeypatch.syspath_prepend(site)
    SitePackages(site).install(
        "acme-opaque",
        "[torchrl_ckpt.checkpoint_backends]\nopaque = acme_opaque:OpaqueBackend\n",
        modules={"acme_opaque": OPAQUE_BACKEND},
    )
    layout = Layout(tmp_path / "checkpoints")
    with process_group(tmp_path / "store"):
        save_checkpoint(layout, 2, {NORM: torch.ones(16)}, backend="opaque")
    done = ckpt("inspect", layout.root)
    assert done.exit_code == 2
    assert "architecture qwen3" in done.out
    assert "(OpaqueBackend) that has no `describe` and `read`" in done.err


def test_values_that_are_not_finite_are_counted(ckpt: CkptCommand, tmp_path: Path) -> None:
    odd = torch.tensor([1.0, float("nan"), float("inf"), -float("inf")])
    with process_group(tmp_path / "store"):
        tensors = {"model.odd": odd, "model.good": torch.ones(3), "model.steps": torch.arange(3)}
        step = save_checkpoint(Layout(tmp_path / "checkpoints"), 2, tensors)
    done = ckpt("inspect", step, "--values")
    assert done.exit_code == 0
    assert "not finite: 3 values, in 1 tensors" in done.out
    shown = json.loads(ckpt("inspect", step, "--values", "--json").out)
    counts = {tensor["name"]: tensor["num_nonfinite"] for tensor in shown["tensors"]}
    assert counts == {"model.odd": 3, "model.good": 0, "model.steps": 0}
