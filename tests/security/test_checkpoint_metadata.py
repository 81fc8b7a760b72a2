"""DCP's `.metadata`, a pickle, by somebody else: nothing in it is executed, set or followed."""

from __future__ import annotations

import shutil
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch.distributed.checkpoint.metadata import Metadata, MetadataIndex
from torchrl_ckpt_dcp.dcp_backend import DcpBackend, DcpConfig

from tests.support.crafted_pickles import CRAFTED
from tests.support.saved_run import process_group
from torchrl_ckpt.plugin_api.errors import CheckpointDamaged

MAX_GROWTH_BYTES = 16 * 1024 * 1024

TENSORS = {
    "model.a": torch.ones(64, 33),
    "model.b": torch.ones(17),
    "optim.step": torch.tensor(7.0),
}


@pytest.fixture(name="written", scope="module")
def write_tensors(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """What the `dcp` backend has written, within a process group. Do not change it."""
    root = tmp_path_factory.mktemp("written")
    with process_group(root / "store"):
        save = DcpBackend(DcpConfig()).save(TENSORS, root / "tensors", dist.group.WORLD)
        save.wait_written()
        yield root / "tensors"


@pytest.fixture(name="tensor_directory")
def copy_tensors(written: Path, tmp_path: Path) -> Path:
    return shutil.copytree(written, tmp_path / "tensors")


@pytest.mark.parametrize("what", CRAFTED)
def test_odd_metadata_is_damage_and_takes_no_memory(what: str, tensor_directory: Path) -> None:
    path = tensor_directory / ".metadata"
    path.write_bytes(CRAFTED[what](path))
    backend = DcpBackend(DcpConfig())
    targets = {name: torch.zeros_like(tensor) for name, tensor in TENSORS.items()}
    tracemalloc.start()
    try:
        with pytest.raises(CheckpointDamaged):
            backend.describe(tensor_directory)
        with pytest.raises(CheckpointDamaged):
            backend.read(tensor_directory, ["model.a"])
        with pytest.raises(CheckpointDamaged):
            backend.load(targets, tensor_directory, dist.group.WORLD)
        assert tracemalloc.get_traced_memory()[1] < MAX_GROWTH_BYTES
    finally:
        tracemalloc.stop()
    assert not hasattr(Metadata, "poison")
    assert hash(MetadataIndex("model.a")) == hash(MetadataIndex("model.a"))
