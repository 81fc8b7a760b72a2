"""A fork appears whole or not at all, and neither run can harm the other."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.support.plain_checkpoint import Save
from torchrl_ckpt.checkpoint.fork import fork
from torchrl_ckpt.checkpoint.layout import Layout
from torchrl_ckpt.checkpoint.verify import verify
from torchrl_ckpt.plugin_api.errors import CheckpointDamaged, CheckpointFailed, RunDirectoryInUse


@pytest.fixture(name="target")
def make_target(tmp_path: Path) -> Layout:
    return Layout(tmp_path / "other" / "checkpoints")


@pytest.mark.parametrize("link", [False, True])
def test_a_fork_is_good_and_the_original_untouched(save: Save, target: Layout, link: bool) -> None:
    origin = save(3)
    committed = fork(origin, target, link=link)
    assert verify(committed) == verify(origin)
    assert target.steps() == [3]
    shared = os.path.samefile(origin / "manifest.json", committed / "manifest.json")
    assert shared == link


def test_what_changes_while_it_is_copied_is_found_and_nothing_is_left(
    save: Save, target: Layout
) -> None:
    origin = save(3)
    (origin / "trainer/state.json").write_text("{}")
    with pytest.raises(
        CheckpointDamaged, match=r"trainer/state\.json differs from what its manifest says"
    ):
        fork(origin, target)
    assert list(target.root.iterdir()) == []


def test_a_failure_half_way_leaves_nothing(
    save: Save, target: Layout, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    origin = save(3)
    monkeypatch.setattr(os, "rename", full)
    with pytest.raises(CheckpointFailed, match="No space left"):
        fork(origin, target)
    assert list(target.root.iterdir()) == []


def test_a_step_that_exists_is_never_replaced(save: Save, target: Layout) -> None:
    fork(save(3), target)
    with pytest.raises(RunDirectoryInUse, match="step_3 exists already"):
        fork(save(3), target)
