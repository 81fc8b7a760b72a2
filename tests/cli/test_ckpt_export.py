"""`ckpt export` writes what transformers loads, bit for bit, and overwrites nothing."""

from __future__ import annotations

from pathlib import Path

import torch

from tests.support.ckpt_command import CkptCommand
from torchrl_ckpt.checkpoint.manifest import read_manifest
from torchrl_ckpt.inspection.stored_tensors import StoredTensors


def test_transformers_loads_it_and_every_tensor_is_that_of_the_checkpoint(
    ckpt: CkptCommand, run: Path, tmp_path: Path
) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    done = ckpt("export", run, tmp_path / "exported", "--step", 4)
    assert (done.exit_code, done.err) == (0, "")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "exported", dtype="float32")
    directory = run / "checkpoints/step_4"
    stored = StoredTensors(directory, read_manifest(directory))
    names = [tensor.name for tensor in stored.describe() if tensor.name.startswith("model.")]
    tensors = model.state_dict()
    assert {f"model.{name}" for name in tensors} == set(names)
    for name, tensor in stored.read(names).items():
        assert torch.equal(tensors[name.removeprefix("model.")], tensor)
    assert AutoTokenizer.from_pretrained(tmp_path / "exported").eos_token_id is not None


def test_an_existing_directory_is_refused(ckpt: CkptCommand, run: Path, tmp_path: Path) -> None:
    (tmp_path / "existing").mkdir()
    (tmp_path / "existing/model.safetensors").write_text("precious")
    done = ckpt("export", run, tmp_path / "existing")
    assert done.exit_code == 2
    assert "exists already" in done.err
    assert (tmp_path / "existing/model.safetensors").read_text() == "precious"


def test_a_damaged_checkpoint_is_not_exported(ckpt: CkptCommand, run: Path, tmp_path: Path) -> None:
    (shard,) = (run / "checkpoints/step_6/trainer/tensors").glob("*.distcp")
    content = bytearray(shard.read_bytes())
    content[-1] ^= 1
    shard.write_bytes(content)
    done = ckpt("export", run, tmp_path / "exported")
    assert done.exit_code == 4
    assert shard.name in done.err
    assert not list(tmp_path.glob("*exported*"))
