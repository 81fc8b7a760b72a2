"""A third party's plugins keep their contracts with no more of torchrl-ckpt than those."""

from __future__ import annotations

import ast
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Shard, distribute_tensor

from torchrl_ckpt.plugin_api.checkpoint_backends import ReadableBackend, TensorDescription
from torchrl_ckpt.plugin_api.durable_files import digest_file
from torchrl_ckpt.plugin_api.errors import CheckpointMismatch
from torchrl_ckpt.plugin_api.losses import LossInputs
from torchrl_ckpt.registry.loading import violations

PROJECT = Path(__file__).parent / "acme_plugins"
sys.path.insert(0, str(PROJECT))

from acme_plugins.whole_file import WholeFileBackend  # noqa: E402
from acme_plugins.z_loss import ZLoss, ZLossConfig  # noqa: E402


def test_they_import_no_more_than_a_third_party_may() -> None:
    for file in PROJECT.glob("acme_plugins/*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.ImportFrom) and str(node.module).startswith("torchrl_ckpt"):
                assert str(node.module).startswith("torchrl_ckpt.plugin_api."), file
            assert not isinstance(node, ast.Import) or "torchrl_ckpt" not in ast.dump(node), file


def test_they_keep_their_contracts() -> None:
    assert violations("losses", ZLoss) == []
    assert violations("checkpoint_backends", WholeFileBackend) == []


def test_z_loss_is_cross_entropy_and_the_squared_normaliser_over_what_counts() -> None:
    logits = torch.randn(2, 3, 5)
    targets = torch.tensor([[1, 2, 3], [4, 0, -100]])
    mask = targets >= 0
    inputs = LossInputs(
        logits, targets, mask, torch.zeros(2, 3, dtype=torch.long), num_tokens=5, num_samples=2
    )

    output = ZLoss(ZLossConfig(coefficient=0.1))(inputs)

    nll = torch.nn.functional.cross_entropy(logits[mask], targets[mask])
    log_z = logits.exp().sum(-1).log()[mask]
    torch.testing.assert_close(output.loss, nll + 0.1 * log_z.square().mean())
    torch.testing.assert_close(output.metrics["cross_entropy"], nll)


@pytest.fixture
def group(tmp_path: Path):
    dist.init_process_group(
        "gloo", init_method=f"file://{tmp_path}/rendezvous", rank=0, world_size=1
    )
    yield dist.group.WORLD
    dist.destroy_process_group()


def test_what_was_staged_is_what_is_written(tmp_path: Path, group) -> None:
    state = {"weight": torch.arange(6.0).view(2, 3).T, "step": torch.tensor(3)}
    backend = WholeFileBackend()

    save = backend.save(state, tmp_path / "part", group)
    save.wait_staged()
    state["weight"].zero_()
    (record,) = save.wait_written().files
    backend.load(state, tmp_path / "part", group)

    assert (record.size, record.digest) == digest_file(tmp_path / "part" / record.path)
    assert torch.equal(state["weight"], torch.arange(6.0).view(2, 3).T)


def test_its_checkpoints_can_be_looked_into(tmp_path: Path, group) -> None:
    backend = WholeFileBackend()
    state = {"weight": torch.ones(2, 3, dtype=torch.bfloat16), "step": torch.tensor(3)}
    backend.save(state, tmp_path, group).wait_written()

    assert isinstance(backend, ReadableBackend)
    assert backend.describe(tmp_path) == [
        TensorDescription("step", (), "int64"),
        TensorDescription("weight", (2, 3), "bfloat16"),
    ]
    assert torch.equal(backend.read(tmp_path, ["weight"])["weight"], state["weight"])


@pytest.mark.parametrize("wanted", [{"bias": torch.zeros(2)}, {"weight": torch.zeros(3)}])
def test_a_checkpoint_of_another_model_is_refused(tmp_path: Path, group, wanted) -> None:
    backend = WholeFileBackend()
    backend.save({"weight": torch.zeros(2)}, tmp_path, group).wait_written()

    with pytest.raises(CheckpointMismatch, match="was wanted"):
        backend.load(wanted, tmp_path, group)


def test_shards_are_gathered_and_dealt_out_again(tmp_path: Path) -> None:
    torch.multiprocessing.spawn(_save_and_load_shards, args=(tmp_path,), nprocs=2)


def _save_and_load_shards(rank: int, directory: Path) -> None:
    rendezvous = f"file://{directory}/rendezvous"
    dist.init_process_group("gloo", init_method=rendezvous, rank=rank, world_size=2)
    mesh = init_device_mesh("cpu", (2,))
    whole = torch.arange(15.0).view(5, 3)  # five rows do not divide among two ranks
    saved = distribute_tensor(whole, mesh, [Shard(0)])
    backend = WholeFileBackend()

    save = backend.save({"weight": saved}, directory / "part", dist.group.WORLD)
    records = save.wait_written().files
    dist.barrier()
    loaded = distribute_tensor(torch.zeros(5, 3), mesh, [Shard(1)])
    backend.load({"weight": loaded}, directory / "part", dist.group.WORLD)

    assert len(records) == (1 if rank == 0 else 0)
    assert isinstance(loaded, DTensor)
    assert torch.equal(loaded.full_tensor(), whole)
    dist.destroy_process_group()
