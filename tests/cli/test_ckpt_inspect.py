"""`ckpt inspect` tells what a checkpoint is without loading it."""

from __future__ import annotations

import json
import os
import pickle
from pathlib import Path

import pytest

from torchrl_ckpt.inspection import stored_tensors

NORM = "model.model.norm.weight"


def test_it_shows_progress_recipe_plugins_and_every_tensor(ckpt, run: Path) -> None:
    done = ckpt("inspect", run, "--step", 4)
    assert done.code == 0
    assert "samples 32, step 4, tokens 256" in done.out
    assert "architecture qwen3" in done.out
    assert "dcp, of torchrl-ckpt 0.1.0" in done.out
    row = next(line for line in done.out.splitlines() if line.startswith(NORM))
    assert row.split() == [NORM, "float32", "[16]", "16"]


def test_the_json_has_the_whole_manifest(ckpt, run: Path) -> None:
    shown = json.loads(ckpt("inspect", run, "--json").out)
    assert shown["manifest"]["step"] == 6
    assert shown["manifest"]["recipe"]["max_steps"] == 6
    assert {"name": NORM, "shape": [16], "dtype": "float32"} in shown["tensors"]


def test_it_executes_nothing(ckpt, run: Path, tmp_path: Path) -> None:
    class Exploit:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return (os.mkdir, (str(tmp_path / "executed"),))

    metadata = run / "checkpoints/step_6/trainer/tensors/.metadata"
    metadata.write_bytes(pickle.dumps(Exploit()))
    done = ckpt("inspect", run)
    assert done.code == 4
    assert "nothing of it was executed" in done.err
    assert not (tmp_path / "executed").exists()


def test_a_backend_that_cannot_be_looked_into_is_named_after_the_summary(
    ckpt, run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Opaque:
        """Only what the contract demands."""

    monkeypatch.setattr(stored_tensors, "checkpoint_backend", lambda _: Opaque())
    done = ckpt("inspect", run)
    assert done.code == 2
    assert "architecture qwen3" in done.out
    assert "(Opaque) that has no `describe` and `read`" in done.err
