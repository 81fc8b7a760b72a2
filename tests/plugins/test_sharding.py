"""The model over several ranks: FSDP2 on CPU with gloo."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file

from tests.support.ranks import run_ranks
from tests.support.tiny_model import tiny_model

TOKENS = torch.tensor([[5, 6, 7, 3, 7, 6, 5, 1], [8, 9, 3, 9, 8, 1, 0, 0]])
POSITIONS = torch.tensor([[0, 1, 2, 3, 4, 5, 6, 7], [0, 1, 2, 3, 4, 5, 0, 0]])


def _train_and_export(rank: int, root: Path, world_size: int) -> None:
    """Take one SGD step on one row per rank (one rank alone: both rows); rank 0 exports."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model = tiny_model()
    module = model.build(pretrained=False)
    mesh = dist.init_device_mesh("cpu", (world_size,))
    model.parallelize(module, mesh, param_dtype=torch.float32)
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    rows = slice(rank, None, world_size)
    module(TOKENS[rows], POSITIONS[rows]).logsumexp(-1).mean().backward()
    optimizer.step()
    state = {name: tensor.full_tensor() for name, tensor in module.state_dict().items()}
    if rank == 0:
        model.export(state, root / "model")


@pytest.mark.parametrize("world_size", [1, 2])
def test_a_sharded_step_exports_what_an_unsharded_one_computes(
    world_size: int, tmp_path: Path
) -> None:
    run_ranks(world_size, _train_and_export, tmp_path, world_size)

    torch.manual_seed(0)
    module = tiny_model().build(pretrained=False)
    module(TOKENS, POSITIONS).logsumexp(-1).mean().backward()
    torch.optim.SGD(module.parameters(), lr=0.1).step()
    exported = load_file(tmp_path / "model" / "model.safetensors")
    assert exported.keys() == module.state_dict().keys()
    for name, tensor in module.state_dict().items():
        torch.testing.assert_close(exported[name], tensor, rtol=0, atol=1e-6)
