"""A third party's plugins keep their contracts and import `torchrl_ckpt.plugin_api` alone."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from acme_plugins.whole_file import WholeFileBackend
from acme_plugins.z_loss import ZLoss, ZLossConfig
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Shard, distribute_tensor

from tests.support.ranks import run_ranks
from torchrl_ckpt.plugin_api.checkpoint_backends import ReadableBackend, TensorDescription
from torchrl_ckpt.plugin_api.durable_files import digest_file
from torchrl_ckpt.plugin_api.errors import CheckpointMismatch
from torchrl_ckpt.plugin_api.losses import LossInputs
from torchrl_ckpt.registry.loading import violations

SOURCES = sorted((Path(__file__).parent / "acme_plugins/acme_plugins").glob("*.py"))


@pytest.mark.parametrize("source", SOURCES, ids=lambda source: source.name)
def test_it_imports_only_plugin_api_of_torchrl_ckpt(source: Path) -> None:
    for node in ast.walk(ast.parse(source.read_text())):
        if isinstance(node, ast.ImportFrom) and str(node.module).startswith("torchrl_ckpt"):
            assert str(node.module).startswith("torchrl_ckpt.plugin_api.")
        assert not isinstance(node, ast.Import) or "torchrl_ckpt" not in ast.dump(node)


def test_the_plugins_keep_their_contracts() -> None:
    assert violations("losses", ZLoss) == []
    assert violations("checkpoint_backends", WholeFileBackend) == []


def test_z_loss_is_cross_entropy_plus_the_squared_normaliser_of_counted_targets() -> None:
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


@pytest.fixture(name="group")
def make_group(tmp_path: Path) -> Iterator[dist.ProcessGroup]:
    """A gloo group of this process alone."""
    rendezvous = f"file://{tmp_path}/rendezvous"
    dist.init_process_group("gloo", init_method=rendezvous, rank=0, world_size=1)
    yield default_group()
    dist.destroy_process_group()


def default_group() -> dist.ProcessGroup:
    assert dist.group.WORLD is not None
    return dist.group.WORLD


def test_the_staged_values_are_the_ones_written(tmp_path: Path, group: dist.ProcessGroup) -> None:
    state = {"weight": torch.arange(6.0).view(2, 3).T, "step": torch.tensor(3)}
    backend = WholeFileBackend()

    save = backend.save(state, tmp_path / "part", group)
    save.wait_staged()
    state["weight"].zero_()
    (record,) = save.wait_written().files
    backend.load(state, tmp_path / "part", group)

    assert (record.size, record.digest) == digest_file(tmp_path / "part" / record.path)
    assert torch.equal(state["weight"], torch.arange(6.0).view(2, 3).T)


def test_a_checkpoint_can_be_read_without_a_model(tmp_path: Path, group: dist.ProcessGroup) -> None:
    backend = WholeFileBackend()
    state = {"weight": torch.ones(2, 3, dtype=torch.bfloat16), "step": torch.tensor(3)}
    backend.save(state, tmp_path, group).wait_written()

    assert isinstance(backend, ReadableBackend)
    assert backend.describe(tmp_path) == [
        TensorDescription("step", (), "int64"),
        TensorDescription("weight", (2, 3), "bfloat16"),
    ]
    assert torch.equal(backend.read(tmp_path, ["weight"])["weight"], state["weight"])


@pytest.mark.parametrize("needed", [{"bias": torch.zeros(2)}, {"weight": torch.zeros(3)}])
def test_a_checkpoint_of_another_model_is_refused(
    tmp_path: Path, group: dist.ProcessGroup, needed: Mapping[str, torch.Tensor]
) -> None:
    backend = WholeFileBackend()
    backend.save({"weight": torch.zeros(2)}, tmp_path, group).wait_written()

    with pytest.raises(CheckpointMismatch, match="is needed"):
        backend.load(needed, tmp_path, group)


def test_shards_are_gathered_for_the_file_and_loaded_with_another_sharding(tmp_path: Path) -> None:
    run_ranks(2, save_and_load_shards, tmp_path)


def save_and_load_shards(rank: int, directory: Path) -> None:
    mesh = init_device_mesh("cpu", (2,))
    whole = torch.arange(15.0).view(5, 3)  # five rows, which two ranks cannot share equally
    saved = distribute_tensor(whole, mesh, [Shard(0)])
    backend = WholeFileBackend()

    save = backend.save({"weight": saved}, directory / "part", default_group())
    records = save.wait_written().files
    dist.barrier()
    loaded = distribute_tensor(torch.zeros(5, 3), mesh, [Shard(1)])
    backend.load({"weight": loaded}, directory / "part", default_group())

    assert len(records) == (1 if rank == 0 else 0)
    assert isinstance(loaded, DTensor)
    assert torch.equal(loaded.full_tensor(), whole)
