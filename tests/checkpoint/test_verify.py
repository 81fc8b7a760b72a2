"""Damage of any kind to any file is found, and the file is named."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest

from tests.support.plain_checkpoint import Save
from torchrl_ckpt.checkpoint.verify import strays, verify
from torchrl_ckpt.plugin_api.errors import CheckpointDamaged


def test_an_untouched_checkpoint_is_good(save: Save) -> None:
    assert verify(save(4)).step == 4


def test_every_flipped_bit_of_every_file_is_found(save: Save) -> None:
    directory = save(1)
    for path in sorted(p for p in directory.rglob("*") if p.is_file()):
        before = path.read_bytes()
        for position in range(len(before)):
            flipped = bytearray(before)
            flipped[position] ^= 1 << (position % 8)
            path.write_bytes(flipped)
            with pytest.raises(CheckpointDamaged, match=re.escape(path.name)):
                verify(directory)
        path.write_bytes(before)
    verify(directory)


@pytest.mark.parametrize("name", ["trainer/state.json", "orchestrator/part.json", "manifest.json"])
def test_truncated_and_missing_files_are_named(save: Save, name: str) -> None:
    directory = save(1)
    path = directory / name
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(CheckpointDamaged, match=re.escape(name)):
        verify(directory)
    path.unlink()
    with pytest.raises(CheckpointDamaged, match=re.escape(name)):
        verify(directory)


def test_a_file_that_does_not_belong_there_is_named_and_no_damage(save: Save) -> None:
    directory = save(1)
    (directory / "trainer" / ".nfs0001").write_text("?")
    (directory / "link").symlink_to("/dev/zero")
    assert list(strays(directory, verify(directory))) == ["link", "trainer/.nfs0001"]


def test_verifying_needs_no_torch(save: Save) -> None:
    program = (
        "import sys; from pathlib import Path; from torchrl_ckpt.cli.main import main\n"
        f"code = main(['ckpt', 'verify', {str(save(1))!r}])\n"
        "assert 'torch' not in sys.modules; sys.exit(code)"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
