"""A commit waits for every part, deletes what is not kept, and works in a process of its own."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.plain_checkpoint import PARTS, write_part
from torchrl_ckpt.checkpoint.commit import request
from torchrl_ckpt.checkpoint.committer import Committer, CommitterProcess
from torchrl_ckpt.checkpoint.layout import Layout
from torchrl_ckpt.checkpoint.manifest import read_manifest
from torchrl_ckpt.checkpoint.part import open_part, refuse_part
from torchrl_ckpt.checkpoint.verify import verify
from torchrl_ckpt.config.ckpt import CheckpointConfig
from torchrl_ckpt.plugin_api.checkpoint_backends import FileRecord
from torchrl_ckpt.plugin_api.durable_files import record_json
from torchrl_ckpt.plugin_api.errors import CheckpointFailed, WaitTimeout
from torchrl_ckpt.run.attempt import Attempt


def make_committer(layout: Layout, **ckpt: float) -> Committer:
    attempt = Attempt(
        output_dir=layout.root.parent,
        number=1,
        max_steps=9,
        resume_step=None,
        ckpt=CheckpointConfig(**ckpt),  # type: ignore[arg-type]
    )
    return Committer(attempt, layout, PARTS)


@pytest.fixture(name="process")
def start_process(layout: Layout) -> Iterator[CommitterProcess]:
    process = CommitterProcess(make_committer(layout, keep=2, timeout=10))
    process.start()
    yield process
    process.close()


def trainer_files(layout: Layout, step: int) -> list[FileRecord]:
    """Request the checkpoint of `step` and write the trainer's files, which are not finished."""
    directory = open_part(request(layout, step, PARTS), "trainer")
    return [record_json(directory, "state.json", {"step": step})]


def test_the_trainers_part_is_finished_and_committed_with_the_others(
    layout: Layout, process: CommitterProcess
) -> None:
    for commit, step in ((make_committer(layout).commit, 1), (process.commit, 2)):
        files = trainer_files(layout, step)
        write_part(layout.partial(step), "orchestrator")
        assert commit(step, files, {"world_size": 3}) < 5
        verify(layout.step(step))
        assert read_manifest(layout.step(step)).metadata["world_size"] == 3


def test_steps_that_are_not_kept_are_deleted_after_the_commit(
    layout: Layout, process: CommitterProcess
) -> None:
    for step in (1, 2, 3):
        files = trainer_files(layout, step)
        write_part(layout.partial(step), "orchestrator")
        process.commit(step, files, {})
    assert layout.steps() == [2, 3]


def test_a_part_that_does_not_come_within_its_limit_commits_nothing(layout: Layout) -> None:
    committer = make_committer(layout, timeout=0.1)
    with pytest.raises(WaitTimeout, match=r"orchestrator's part of .*`ckpt\.timeout`"):
        committer.commit(1, trainer_files(layout, 1), {})
    assert layout.steps() == []


def test_a_refused_part_is_not_waited_for_and_its_reason_is_raised(
    layout: Layout, process: CommitterProcess
) -> None:
    files = trainer_files(layout, 1)
    refuse_part(layout.partial(1), "orchestrator", "No space left on device")
    with pytest.raises(CheckpointFailed, match="orchestrator could not write its part: No space"):
        process.commit(1, files, {})
    assert layout.steps() == []


def test_a_file_that_is_longer_than_was_recorded_commits_nothing(layout: Layout) -> None:
    files = trainer_files(layout, 1)
    write_part(layout.partial(1), "orchestrator")
    path: Path = layout.partial(1) / "trainer/state.json"
    path.write_bytes(path.read_bytes() + b" ")
    with pytest.raises(Exception, match=r"state\.json has"):
        make_committer(layout).commit(1, files, {})
    assert layout.steps() == []
