"""DCP files with anything in them: they are read, or refused in words, in bounded time
and memory. Whoever can write the files can also compute the digests in them."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from hypothesis import given
from hypothesis import strategies as st
from torchrl_ckpt_dcp.dcp_backend import DcpBackend, DcpConfig

from tests.support.fuzzing import mutated_bytes, mutated_pickle
from tests.support.growth import bounded
from tests.support.saved_run import process_group
from torchrl_ckpt.plugin_api.errors import CheckpointDamaged


def survives(read: Callable[[], object], *errors: type[Exception]) -> None:
    """Read, and accept no error but these."""
    with suppress(*errors):
        read()


@pytest.fixture(scope="module", name="written")
def write_tensors(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """What the `dcp` backend has written, within a process group."""
    root = tmp_path_factory.mktemp("written")
    tensors = {"model.a": torch.ones(9, 5), "optim.step": torch.tensor(7.0)}
    with process_group(root / "store"):
        save = DcpBackend(DcpConfig()).save(tensors, root / "tensors", dist.group.WORLD)
        save.wait_written()
        shutil.copytree(root / "tensors", root / "whole")
        yield root / "tensors"


@bounded()
@given(data=st.data())
def test_metadata_of_any_opcodes_is_damage_or_harmless(written: Path, data: st.DataObject) -> None:
    whole = (written.with_name("whole") / ".metadata").read_bytes()
    mutated = st.one_of(mutated_pickle(whole), mutated_bytes(whole), st.binary(max_size=64))
    (written / ".metadata").write_bytes(data.draw(mutated))
    backend = DcpBackend(DcpConfig())
    survives(lambda: backend.describe(written), CheckpointDamaged)
    survives(lambda: backend.read(written, ["model.a"]), CheckpointDamaged, KeyError)


@bounded()
@given(data=st.data())
def test_a_file_of_tensors_with_any_bytes_is_damage_or_harmless(
    written: Path, data: st.DataObject
) -> None:
    whole = written.with_name("whole")
    shutil.copyfile(whole / ".metadata", written / ".metadata")
    name = next(path.name for path in whole.glob("*.distcp"))
    (written / name).write_bytes(data.draw(mutated_bytes((whole / name).read_bytes())))
    backend = DcpBackend(DcpConfig())
    targets = {"model.a": torch.zeros(9, 5), "optim.step": torch.tensor(0.0)}
    survives(lambda: backend.load(targets, written, dist.group.WORLD), CheckpointDamaged)
