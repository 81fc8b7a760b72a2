"""`async_dcp` writes the state of the moment of the save, and reports every save that it loses."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Replicate, Shard, distribute_tensor
from torchrl_ckpt_dcp.async_dcp_backend import AsyncDcpBackend, AsyncDcpConfig
from torchrl_ckpt_dcp.dcp_backend import DcpBackend, DcpConfig

from tests.support.ranks import run_ranks
from torchrl_ckpt.plugin_api.durable_files import digest_file
from torchrl_ckpt.plugin_api.errors import CheckpointFailed, UserError, WorkerProcessDied

_MIB = 1024 * 1024


@pytest.fixture(scope="module", name="backend")
def make_backend(group: dist.ProcessGroup) -> Iterator[AsyncDcpBackend]:
    backend = AsyncDcpBackend(AsyncDcpConfig())
    backend.prepare(toy_state(0), group)
    yield backend
    backend.close()


def toy_state(seed: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {
        "model.large": torch.randn(_MIB, generator=generator),
        "model.transposed": torch.randn(64, 33, generator=generator).T,
        "model.half": torch.randn(17, generator=generator).to(torch.bfloat16),
        "model.empty": torch.empty(0, 3),
        "optim.step": torch.tensor(float(seed)),
    }


def load(directory: Path, group: dist.ProcessGroup) -> dict[str, torch.Tensor]:
    loaded = {name: torch.full_like(tensor, -1) for name, tensor in toy_state(0).items()}
    DcpBackend(DcpConfig()).load(loaded, directory, group)
    return loaded


def assert_equal(loaded: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert {name for name in expected if not torch.equal(loaded[name], expected[name])} == set()


def writer_process(backend: AsyncDcpBackend) -> psutil.Process:
    assert backend.writer_pid is not None
    return psutil.Process(backend.writer_pid)


def test_save_after_save_holds_the_state_of_its_own_moment(
    backend: AsyncDcpBackend, tmp_path: Path, group: dist.ProcessGroup
) -> None:
    live = toy_state(1)
    for seed in (1, 2, 3):
        for name, tensor in toy_state(seed).items():
            live[name].copy_(tensor)
        save = backend.save(live, tmp_path / str(seed), group)
        save.wait_staged()
        for tensor in live.values():
            tensor.fill_(7)
        files = {file.path: (file.size, file.digest) for file in save.wait_written().files}
        on_disk = {path.name: digest_file(path) for path in (tmp_path / str(seed)).iterdir()}
        assert files == on_disk
    for seed in (1, 2, 3):
        assert_equal(load(tmp_path / str(seed), group), toy_state(seed))


def test_both_backends_write_the_same_bytes(
    backend: AsyncDcpBackend, tmp_path: Path, group: dist.ProcessGroup
) -> None:
    state = {name: tensor.contiguous() for name, tensor in toy_state(5).items()}
    in_background = backend.save(state, tmp_path / "async", group).wait_written()
    in_foreground = DcpBackend(DcpConfig()).save(state, tmp_path / "sync", group).wait_written()
    assert sorted(in_background.files, key=str) == sorted(in_foreground.files, key=str)


def test_it_reports_the_bytes_as_they_are_written(
    backend: AsyncDcpBackend, tmp_path: Path, group: dist.ProcessGroup
) -> None:
    reported: list[int] = []
    written = backend.save(toy_state(1), tmp_path / "t", group).wait_written(reported.append)
    data = next(file.size for file in written.files if file.path.endswith(".distcp"))
    assert sum(reported) == data
    staged = sum(tensor.numel() * tensor.element_size() for tensor in toy_state(1).values())
    assert written.metrics["staged_bytes"] == staged


def test_a_directory_that_cannot_be_made_is_reported_and_the_next_save_succeeds(
    backend: AsyncDcpBackend, tmp_path: Path, group: dist.ProcessGroup
) -> None:
    (tmp_path / "file").write_text("in place of a directory")
    with pytest.raises(UserError, match=r"rank 0: .*file"):
        backend.save(toy_state(1), tmp_path / "file" / "t", group).wait_written()
    backend.save(toy_state(2), tmp_path / "t", group).wait_written()
    assert_equal(load(tmp_path / "t", group), toy_state(2))


def test_a_write_that_fails_within_a_tensor_is_reported_with_its_cause(
    backend: AsyncDcpBackend, tmp_path: Path, group: dist.ProcessGroup
) -> None:
    writer = writer_process(backend)
    unlimited = writer.rlimit(psutil.RLIMIT_FSIZE)
    writer.rlimit(psutil.RLIMIT_FSIZE, (2 * _MIB, unlimited[1]))
    with pytest.raises(CheckpointFailed, match=r"rank 0: .*File too large"):
        backend.save(toy_state(1), tmp_path / "cut", group).wait_written()
    writer.rlimit(psutil.RLIMIT_FSIZE, unlimited)
    backend.save(toy_state(2), tmp_path / "t", group).wait_written()
    assert_equal(load(tmp_path / "t", group), toy_state(2))


def test_a_writer_that_died_is_replaced_and_its_save_reported_as_failed(
    backend: AsyncDcpBackend, tmp_path: Path, group: dist.ProcessGroup
) -> None:
    writer = writer_process(backend)
    writer.suspend()
    save = backend.save(toy_state(1), tmp_path / "lost", group)
    writer.send_signal(signal.SIGKILL)
    with pytest.raises(CheckpointFailed, match="checkpoint writer was killed by SIGKILL"):
        save.wait_written()
    backend.save(toy_state(2), tmp_path / "t", group).wait_written()
    assert_equal(load(tmp_path / "t", group), toy_state(2))
    assert writer_process(backend).pid != writer.pid


def test_a_writer_that_died_between_saves_loses_no_save(
    backend: AsyncDcpBackend, tmp_path: Path, group: dist.ProcessGroup
) -> None:
    writer = writer_process(backend)
    writer.kill()
    while writer.status() != psutil.STATUS_ZOMBIE:
        time.sleep(0.01)
    backend.save(toy_state(4), tmp_path / "t", group).wait_written()
    assert_equal(load(tmp_path / "t", group), toy_state(4))


def test_a_save_whose_writer_makes_no_progress_is_given_up(
    tmp_path: Path, group: dist.ProcessGroup
) -> None:
    backend = AsyncDcpBackend(AsyncDcpConfig())
    backend.save(toy_state(1), tmp_path / "first", group).wait_written()
    backend.config = AsyncDcpConfig(stuck_after=0.5)
    writer_process(backend).suspend()
    with pytest.raises(CheckpointFailed, match=r"written nothing .* `ckpt\.backend\.stuck_after`"):
        backend.save(toy_state(1), tmp_path / "stuck", group).wait_written()
    backend.config = AsyncDcpConfig()
    backend.save(toy_state(3), tmp_path / "t", group).wait_written()
    backend.close()
    assert_equal(load(tmp_path / "t", group), toy_state(3))


def test_later_saves_allocate_no_more_memory(
    backend: AsyncDcpBackend, tmp_path: Path, group: dist.ProcessGroup
) -> None:
    def shared() -> int:
        return psutil.Process().memory_full_info().shared

    backend.save(toy_state(1), tmp_path / "0", group).wait_written()
    before = shared()
    for number in range(1, 6):
        backend.save(toy_state(number), tmp_path / str(number), group).wait_written()
    assert shared() - before < _MIB


def test_every_rank_writes_its_shards_and_learns_of_the_failure_of_another(tmp_path: Path) -> None:
    run_ranks(2, _save_shards, tmp_path)


def _save_shards(rank: int, directory: Path) -> None:
    mesh = init_device_mesh("cpu", (2,))
    whole = torch.arange(15.0).view(5, 3)  # five rows do not divide among two ranks
    backend = AsyncDcpBackend(AsyncDcpConfig())
    state = {
        "sharded": distribute_tensor(whole, mesh, [Shard(0)]),
        "replicated": distribute_tensor(whole + 1, mesh, [Replicate()]),
    }
    assert dist.group.WORLD is not None
    group = dist.group.WORLD

    backend.prepare(state, group)
    files = backend.save(state, directory / "good", group).wait_written().files
    assert (".metadata" in {file.path for file in files}) == (rank == 0)
    dist.barrier()
    loaded = {name: torch.zeros(5, 3) for name in state}
    DcpBackend(DcpConfig()).load(loaded, directory / "good", group)
    assert torch.equal(loaded["sharded"], whole)
    assert torch.equal(loaded["replicated"], whole + 1)

    save = backend.save(state, directory / "bad", group)
    if rank == 1:
        writer_process(backend).kill()
    try:
        save.wait_written()
    except WorkerProcessDied:
        raise AssertionError("the error must name the rank that failed") from None
    except CheckpointFailed as error:
        assert str(error).startswith("rank 1: the checkpoint writer was killed")  # noqa: PT017
    else:
        # The writer had finished before it was killed, so the files are good.
        assert (directory / "bad").is_dir()
    backend.close()
