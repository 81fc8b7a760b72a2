"""A checkpoint directory is one run's: others are refused; a move or a copy is understood."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.support.plain_checkpoint import commit_plain
from torchrl_ckpt.checkpoint.layout import Layout
from torchrl_ckpt.checkpoint.ownership import locked_for_removal, owned, shared
from torchrl_ckpt.plugin_api.errors import CheckpointDamaged, RunDirectoryInUse
from torchrl_ckpt.run.directory import settle_run_id


@pytest.fixture(name="layout")
def make_layout(tmp_path: Path) -> Layout:
    """A place outside of every run's directory."""
    return Layout(tmp_path / "elsewhere")


def enter(layout: Layout, output_dir: Path) -> None:
    with owned(layout, output_dir, settle_run_id(output_dir)):
        pass


def test_another_run_is_refused_and_the_owner_named(layout: Layout, tmp_path: Path) -> None:
    enter(layout, tmp_path / "one")
    enter(layout, tmp_path / "one")
    with pytest.raises(RunDirectoryInUse, match=rf"the one in {tmp_path}/one.*ckpt.directory"):
        enter(layout, tmp_path / "other")
    settle_run_id(tmp_path / "other")
    with (
        pytest.raises(RunDirectoryInUse, match="another run"),
        locked_for_removal(layout, tmp_path / "other"),
    ):
        pass


def test_only_components_of_one_run_share_it(layout: Layout, tmp_path: Path) -> None:
    one, other = tmp_path / "one", tmp_path / "other"
    run_id, other_id = settle_run_id(one), settle_run_id(other)
    with shared(layout, one, run_id), shared(layout, one, run_id):
        with pytest.raises(RunDirectoryInUse, match="another run"), shared(layout, other, other_id):
            pass
        with pytest.raises(RunDirectoryInUse, match="in use"):
            enter(layout, one)
        with pytest.raises(RunDirectoryInUse, match="in use"), locked_for_removal(layout, one):
            pass


def test_a_moved_run_keeps_it_and_a_copy_does_not_get_it(layout: Layout, tmp_path: Path) -> None:
    enter(layout, tmp_path / "one")
    shutil.copytree(tmp_path / "one", tmp_path / "copy")
    with pytest.raises(RunDirectoryInUse, match="is a copy"):
        enter(layout, tmp_path / "copy")
    (tmp_path / "one").rename(tmp_path / "moved")
    enter(layout, tmp_path / "moved")


def test_a_copied_run_owns_the_copied_checkpoints_in_it(tmp_path: Path) -> None:
    one, copy = tmp_path / "one", tmp_path / "copy"
    enter(Layout(one / "checkpoints"), one)
    shutil.copytree(one, copy)
    enter(Layout(copy / "checkpoints"), copy)
    enter(Layout(one / "checkpoints"), one)


def test_checkpoints_of_an_unknown_run_are_not_adopted(layout: Layout, tmp_path: Path) -> None:
    commit_plain(layout, 2)
    with pytest.raises(RunDirectoryInUse, match="may be another run's"):
        enter(layout, tmp_path / "one")
    assert layout.steps() == [2]
    inside = Layout(tmp_path / "one/checkpoints")
    commit_plain(inside, 2)
    enter(inside, tmp_path / "one")  # An earlier version's: the place says whose they are.


def test_an_odd_owner_is_damage(layout: Layout, tmp_path: Path) -> None:
    enter(layout, tmp_path / "one")
    (layout.root / ".owner.json").write_text("[" * 1000)
    with pytest.raises(CheckpointDamaged, match=r"\.owner\.json"):
        enter(layout, tmp_path / "one")
