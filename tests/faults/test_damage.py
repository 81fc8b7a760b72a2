"""`verify` finds every flipped bit and every missing byte of a checkpoint, and names the file."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.faults.damage import (
    BitSelection,
    files_of,
    unnoticed_cuts,
    unnoticed_flips,
)
from tests.support.faults.saver import Saver
from tests.support.toy_training import SaveOptions
from torchrl_ckpt.checkpoint.layout import MANIFEST, Layout
from torchrl_ckpt.checkpoint.verify import verify


@pytest.fixture(scope="module", name="checkpoint")
def save_checkpoint(saver: Saver, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("damage") / "run"
    assert saver.save(run, SaveOptions(), [1]).exit_code == 0
    return Layout(run / "checkpoints").step(1)


def test_the_damaged_checkpoint_holds_every_kind_of_file(checkpoint: Path) -> None:
    names = {path.relative_to(checkpoint).as_posix() for path in files_of(checkpoint)}
    assert names == {
        "manifest.json",
        "request.json",
        "orchestrator/part.json",
        "orchestrator/rollouts/step_2/batch.json",
        "orchestrator/rollouts/step_2/batch.safetensors",
        "orchestrator/state.json",
        "trainer/part.json",
        "trainer/rng/rank_0.json",
        "trainer/state.json",
        "trainer/tensors/.metadata",
        "trainer/tensors/__0_0.distcp",
    }


def test_a_flipped_bit_is_found_and_its_file_named(checkpoint: Path) -> None:
    sampled = BitSelection(max_whole_bytes=64, num_sampled=300)
    for path in files_of(checkpoint):
        assert list(unnoticed_flips(checkpoint, path, sampled)) == []
    verify(checkpoint)


@pytest.mark.slow
def test_every_flipped_bit_of_the_manifest_is_found(checkpoint: Path) -> None:
    """It is parsed, while the other files are only compared with the digests in it."""
    manifest = checkpoint / MANIFEST
    every_bit = BitSelection(max_whole_bytes=manifest.stat().st_size, num_sampled=1)
    assert list(unnoticed_flips(checkpoint, manifest, every_bit)) == []
    verify(checkpoint)


def test_a_file_that_is_truncated_lengthened_or_missing_is_named(checkpoint: Path) -> None:
    for path in files_of(checkpoint):
        assert list(unnoticed_cuts(checkpoint, path)) == []
    verify(checkpoint)


def test_sampled_bits_reach_every_position_within_a_byte(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(bytes(10_000))
    bits = BitSelection(max_whole_bytes=0, num_sampled=100).bits(path)
    assert {bit % 8 for bit in bits} == set(range(8))
