"""A path stands for a run, its checkpoints or one of them; any other is an error."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.plain_checkpoint import Save
from torchrl_ckpt.checkpoint.layout import MANIFEST, Layout
from torchrl_ckpt.checkpoint.locate import find, find_one
from torchrl_ckpt.config.ckpt import CheckpointConfig
from torchrl_ckpt.plugin_api.durable_files import write_json
from torchrl_ckpt.plugin_api.errors import CheckpointNotFound, OutsideDirectory
from torchrl_ckpt.run.attempt import Attempt


def test_a_run_and_its_checkpoint_directory_mean_the_same(
    layout: Layout, save: Save, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(2)
    run = layout.root.parent
    assert find(run).layout == find(layout.root).layout == layout
    assert find(layout.root).run is not None
    monkeypatch.chdir(layout.root)
    assert find(Path(".")).layout.steps() == [2]


def test_the_directory_is_the_one_of_the_latest_attempt(tmp_path: Path, save: Save) -> None:
    save(2).parent.rename(tmp_path / "elsewhere")
    run = tmp_path / "run"
    run.mkdir()
    ckpt = CheckpointConfig(directory=str(tmp_path / "elsewhere"))
    attempt = Attempt(output_dir=run, number=1, max_steps=9, resume_step=None, ckpt=ckpt)
    write_json(run / "resolved.json", {"attempt": attempt.model_dump(mode="json")})
    # It is outside of the run's, so its files are not enough to be sent there.
    with pytest.raises(OutsideDirectory, match="elsewhere"):
        find(run)
    assert find(tmp_path / "elsewhere").layout.steps() == [2]
    # The directory does not tell which run it belongs to.
    assert find(tmp_path / "elsewhere").run is None


def test_one_is_named_by_its_directory_by_its_step_or_is_the_newest(
    layout: Layout, save: Save
) -> None:
    first, second = save(2), save(10)
    assert find_one(first, None) == first
    assert find_one(layout.root, None) == second
    assert find_one(layout.root, 2) == first


def test_a_checkpoint_without_its_manifest_is_still_found(save: Save) -> None:
    directory = save(2)
    (directory / MANIFEST).unlink()
    assert find_one(directory, None) == directory


def test_a_path_without_checkpoints_is_an_error(tmp_path: Path, layout: Layout, save: Save) -> None:
    with pytest.raises(CheckpointNotFound, match="not a directory"):
        find(tmp_path / "nothing")
    (tmp_path / "empty").mkdir()
    with pytest.raises(
        CheckpointNotFound, match="neither a run's directory nor a checkpoint directory"
    ):
        find(tmp_path / "empty")
    save(2)
    with pytest.raises(CheckpointNotFound, match=r"no checkpoint of step 3.*there is step 2"):
        find_one(layout.root, 3)


def test_a_run_of_an_earlier_version_is_found_too(layout: Layout, save: Save) -> None:
    save(2)
    run = layout.root.parent
    write_json(run / "resolved.json", {"command": "sft", "recipe": {}})
    assert find(run).layout.steps() == [2]
