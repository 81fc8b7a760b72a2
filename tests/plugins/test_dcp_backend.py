"""`dcp` loads what it saved to the bit, reports every failed writer thread and executes nothing."""

from __future__ import annotations

import os
import pickle
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torchrl_ckpt_dcp.dcp_backend import DcpBackend, DcpConfig
from torchrl_ckpt_dcp.recording_writer import RecordingWriter

from torchrl_ckpt.plugin_api.checkpoint_backends import ReadableBackend, TensorDescription
from torchrl_ckpt.plugin_api.durable_files import digest_file
from torchrl_ckpt.plugin_api.errors import CheckpointDamaged, CheckpointMismatch, UserError


def toy_state() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    return {
        "model.a": torch.randn(64, 33, generator=generator),
        "model.b": torch.randn(17, generator=generator).to(torch.bfloat16),
        "optim.step": torch.tensor(7.0),
    }


@pytest.mark.parametrize("threads", [1, 3])
def test_what_is_loaded_is_what_was_saved(
    tmp_path: Path, group: dist.ProcessGroup, threads: int
) -> None:
    backend = DcpBackend(DcpConfig(threads=threads))
    save = backend.save(toy_state(), tmp_path / "t", group)
    save.wait_staged()
    records = {record.path: (record.size, record.digest) for record in save.wait_written().files}
    on_disk = {path.name: digest_file(path) for path in (tmp_path / "t").iterdir()}
    assert records == on_disk
    loaded = {name: torch.zeros_like(tensor) for name, tensor in toy_state().items()}
    backend.load(loaded, tmp_path / "t", group)
    for name, tensor in toy_state().items():
        assert torch.equal(loaded[name], tensor)


def test_its_files_can_be_read_without_a_process_group(
    tmp_path: Path, group: dist.ProcessGroup
) -> None:
    backend = DcpBackend(DcpConfig())
    backend.save(toy_state(), tmp_path / "t", group).wait_written()
    assert isinstance(backend, ReadableBackend)
    assert backend.describe(tmp_path / "t") == [
        TensorDescription("model.a", (64, 33), "float32"),
        TensorDescription("model.b", (17,), "bfloat16"),
        TensorDescription("optim.step", (), "float32"),
    ]
    (read,) = backend.read(tmp_path / "t", ["model.b"]).values()
    assert torch.equal(read, toy_state()["model.b"])


@pytest.mark.parametrize("threads", [1, 3])
def test_a_writer_thread_that_fails_is_reported(
    tmp_path: Path, group: dist.ProcessGroup, threads: int
) -> None:
    # A directory in place of the last thread's file.
    (tmp_path / "t" / f"__0_{threads - 1}.distcp").mkdir(parents=True)
    with pytest.raises(UserError, match=r"were not written|Is a directory"):
        DcpBackend(DcpConfig(threads=threads)).save(toy_state(), tmp_path / "t", group)


def test_the_checkpoint_of_another_model_is_refused_and_its_tensors_named(
    tmp_path: Path, group: dist.ProcessGroup
) -> None:
    backend = DcpBackend(DcpConfig())
    backend.save(toy_state(), tmp_path / "t", group).wait_written()
    another = {**toy_state(), "model.a": torch.zeros(64, 32), "model.c": torch.zeros(1)}
    with pytest.raises(CheckpointMismatch, match=r"model\.c is missing; model\.a is .*\[64, 33\]"):
        backend.load(another, tmp_path / "t", group)


class Exploit:
    """Creates the directory `mark` when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (os.mkdir, (str(self.mark),))


def test_metadata_that_would_run_code_is_refused(tmp_path: Path, group: dist.ProcessGroup) -> None:
    backend = DcpBackend(DcpConfig())
    backend.save(toy_state(), tmp_path / "t", group).wait_written()
    mark = tmp_path / "executed"
    (tmp_path / "t/.metadata").write_bytes(pickle.dumps(Exploit(mark)))
    with pytest.raises(CheckpointDamaged, match=r"asks for .posix\.mkdir"):
        backend.load(toy_state(), tmp_path / "t", group)
    assert not mark.exists()


def test_byte_entries_are_never_unpickled(tmp_path: Path, group: dist.ProcessGroup) -> None:
    mark = tmp_path / "executed"
    writer = RecordingWriter(tmp_path / "t", thread_count=1)
    dcp.save({"model.a": Exploit(mark)}, storage_writer=writer, process_group=group)
    with pytest.raises(CheckpointDamaged, match="pickled bytes"):
        DcpBackend(DcpConfig()).load({"model.a": torch.zeros(2)}, tmp_path / "t", group)
    assert not mark.exists()
