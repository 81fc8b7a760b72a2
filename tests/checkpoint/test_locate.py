"""A path means a run, its checkpoints or one of them; anything else is said to be neither."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from torchrl_ckpt.checkpoint.layout import MANIFEST, Layout
from torchrl_ckpt.checkpoint.locate import find, find_one
from torchrl_ckpt.plugin_api.durable_files import write_json
from torchrl_ckpt.plugin_api.errors import CheckpointNotFound

Save = Callable[[int], Path]


def test_a_run_and_its_checkpoint_directory_mean_the_same(
    layout: Layout, save: Save, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(2)
    run = layout.root.parent
    assert find(run).layout == find(layout.root).layout == layout
    assert find(layout.root).run is not None
    monkeypatch.chdir(layout.root)
    assert find(Path(".")).layout.steps() == [2]


@pytest.mark.parametrize("recipe", ["sft", "rl"])
def test_the_directory_is_where_the_recipe_says(tmp_path: Path, save: Save, recipe: str) -> None:
    save(2).parent.rename(tmp_path / "elsewhere")
    trainer = {"ckpt": {"directory": str(tmp_path / "elsewhere")}}
    run = tmp_path / "run"
    run.mkdir()
    content = trainer if recipe == "sft" else {"trainer": trainer}
    write_json(run / "resolved.json", {"command": recipe, "recipe": content})
    assert find(run).layout.steps() == [2]
    # From there, nobody knows whose checkpoints these are.
    assert find(tmp_path / "elsewhere").run is None


def test_one_is_named_by_its_directory_by_its_step_or_is_the_newest(
    layout: Layout, save: Save
) -> None:
    first, second = save(2), save(10)
    assert find_one(first, None) == first
    assert find_one(layout.root, None) == second
    assert find_one(layout.root, 2) == first


def test_one_that_has_lost_its_manifest_is_still_meant(save: Save) -> None:
    directory = save(2)
    (directory / MANIFEST).unlink()
    assert find_one(directory, None) == directory


def test_what_is_not_there_is_said(tmp_path: Path, layout: Layout, save: Save) -> None:
    with pytest.raises(CheckpointNotFound, match="not a directory"):
        find(tmp_path / "nothing")
    (tmp_path / "empty").mkdir()
    with pytest.raises(CheckpointNotFound, match="neither a run's directory nor"):
        find(tmp_path / "empty")
    save(2)
    with pytest.raises(CheckpointNotFound, match=r"no checkpoint of step 3.*there are steps 2"):
        find_one(layout.root, 3)
