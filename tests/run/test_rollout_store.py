"""Batches of rollouts arrive complete and unchanged, and only those of the same attempt."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from safetensors.numpy import load_file

from tests.support.rollouts import ATTEMPT_ID as FIRST
from tests.support.rollouts import metadata, rollout
from torchrl_ckpt.plugin_api.errors import CheckpointDamaged, DataError
from torchrl_ckpt.run.rollout_store import METADATA, TENSORS, Rollout, RolloutBatch, RolloutStore

SECOND = "c3" * 16
ROLLOUTS = [
    rollout("cat", [1, 2], [3, 4, 5], [-0.5, -1.0, -0.25], reward=0.5, advantage=0.125),
    rollout("at", [6], [7], [-2.0], reward=1.0, advantage=-1 / 3),
]


@pytest.fixture(name="store")
def make_store(tmp_path: Path) -> RolloutStore:
    store = RolloutStore(tmp_path / "rollouts")
    store.clear()
    return store


Row = tuple[list[int], list[int], list[float], float]


def as_lists(batch: RolloutBatch | None) -> list[Row]:
    """The prompt, completion, log-probabilities and advantage of each rollout."""
    assert batch is not None
    columns = (batch.prompts, batch.completions, batch.logprobs, batch.advantages)
    return [tuple(value.tolist() for value in row) for row in zip(*columns, strict=True)]  # type: ignore[misc]


def columns_of(
    rollouts: Sequence[Rollout],
) -> list[Row]:
    return [(r.prompt, r.completion, r.logprobs, r.advantage) for r in rollouts]


def change_metadata(store: RolloutStore, step: int, **values: Any) -> None:
    path = store.path(step) / METADATA
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def test_a_batch_is_read_as_it_was_written(store: RolloutStore) -> None:
    store.write(metadata(4, policy_version=3), ROLLOUTS)
    batch = store.read(4, attempt_id=FIRST)
    assert batch is not None
    assert batch.metadata == metadata(4, policy_version=3)
    assert as_lists(batch) == columns_of(ROLLOUTS)
    assert load_file(store.path(4) / TENSORS)["rewards"].tolist() == [0.5, 1.0]


def test_a_batch_of_another_attempt_is_not_read(store: RolloutStore) -> None:
    store.write(metadata(4, attempt_id=FIRST), ROLLOUTS)
    assert store.read(4, attempt_id=SECOND) is None
    assert store.read(5, attempt_id=FIRST) is None


@pytest.mark.parametrize("change", [{"policy_version": 2}, {"weights_id": ""}])
def test_a_rollout_of_unverified_weights_is_not_trained_on(
    store: RolloutStore, change: dict[str, Any]
) -> None:
    store.write(metadata(4), [ROLLOUTS[0], replace(ROLLOUTS[1], **change)])
    with pytest.raises(DataError, match="not every rollout of step 4 names the verified weights"):
        store.read(4, attempt_id=FIRST)


def test_a_batch_of_a_policy_that_it_trains_is_not_trained_on(store: RolloutStore) -> None:
    store.write(metadata(3, policy_version=3), ROLLOUTS)
    with pytest.raises(DataError, match="weights of policy 3"):
        store.read(3, attempt_id=FIRST)


def test_a_batch_of_another_format_is_refused_by_both_readers(
    store: RolloutStore, tmp_path: Path
) -> None:
    store.write(metadata(4), ROLLOUTS)
    change_metadata(store, 4, format=1)
    message = r"batch\.json has format 1, and this version of torchrl-ckpt reads format 3"
    with pytest.raises(DataError, match=message):
        store.read(4, attempt_id=FIRST)
    with pytest.raises(DataError, match=message):
        RolloutStore(tmp_path / "resumed").restore(store.path(4), attempt_id=SECOND)


@pytest.mark.parametrize(
    "odd",
    [
        *("", "{", "[]", "null", "[" * 100_000, "\0" * 4096, "7"),
        *('{"format": 3}', '{"format": 3, "step": "x"}', '{"format": 3, "state": []}'),
    ],
)
def test_an_odd_batch_that_a_checkpoint_carries_is_damage_and_is_named(
    store: RolloutStore, tmp_path: Path, odd: str
) -> None:
    store.write(metadata(4), ROLLOUTS)
    carried = store.path(4) / METADATA
    carried.write_text(odd)
    resumed = RolloutStore(tmp_path / "resumed")
    with pytest.raises(CheckpointDamaged, match=re.escape(str(carried))):
        resumed.restore(store.path(4), attempt_id=SECOND)
    carried.unlink()
    with pytest.raises(CheckpointDamaged, match=re.escape(str(carried))):
        resumed.restore(store.path(4), attempt_id=SECOND)
    assert resumed.read(4, attempt_id=SECOND) is None


def test_a_restored_batch_is_the_same_to_the_bit_and_of_the_new_attempt(
    store: RolloutStore, tmp_path: Path
) -> None:
    store.write(metadata(4), ROLLOUTS)
    resumed = RolloutStore(tmp_path / "resumed")
    assert resumed.restore(store.path(4), attempt_id=SECOND) == metadata(4, attempt_id=SECOND)
    assert (resumed.path(4) / TENSORS).read_bytes() == (store.path(4) / TENSORS).read_bytes()
    assert resumed.read(4, attempt_id=FIRST) is None
    assert as_lists(resumed.read(4, attempt_id=SECOND)) == columns_of(ROLLOUTS)


def test_used_batches_are_deleted(store: RolloutStore) -> None:
    for step in (4, 5, 6):
        store.write(metadata(step), ROLLOUTS)
    store.delete_before(6)
    assert [store.read(step, FIRST) is not None for step in (4, 5, 6)] == [False, False, True]


def test_a_new_attempt_deletes_the_batches_of_the_one_before(store: RolloutStore) -> None:
    store.write(metadata(4), ROLLOUTS)
    (store.root / ".step_5.tmp").mkdir()
    store.clear()
    assert list(store.root.iterdir()) == []


@pytest.mark.parametrize("content", ["", "{", "[]", "null", "[" * 100_000, "\0" * 4096])
def test_a_torn_batch_file_is_not_read_and_is_named(
    store: RolloutStore, caplog: pytest.LogCaptureFixture, content: str
) -> None:
    store.write(metadata(4), ROLLOUTS)
    (store.path(4) / METADATA).write_text(content)
    assert store.read(4, attempt_id=FIRST) is None
    assert store.read(4, attempt_id=FIRST) is None
    assert caplog.text.count("step_4/batch.json") == 1


@pytest.mark.parametrize(
    "change",
    [
        {"problems": None},
        {"policy_version": "x"},
        {"metrics": 3},
        {"weights_ids": 5},
        {"temperature": []},
    ],
)
def test_a_batch_with_odd_fields_is_refused(store: RolloutStore, change: dict[str, Any]) -> None:
    store.write(metadata(4), ROLLOUTS)
    change_metadata(store, 4, **change)
    with pytest.raises(DataError, match=r"step_4.batch\.json"):
        store.read(4, attempt_id=FIRST)


def test_numbers_that_do_not_fit_their_batch_are_refused(store: RolloutStore) -> None:
    store.write(metadata(4), ROLLOUTS)
    store.write(metadata(5), ROLLOUTS[:1])
    for damage in ((store.path(5) / TENSORS).read_bytes(), b"", b"\xff" * 64):
        (store.path(4) / TENSORS).write_bytes(damage)
        with pytest.raises(DataError, match=r"step_4.batch\.safetensors"):
            store.read(4, attempt_id=FIRST)


def test_names_that_are_not_its_own_are_left_alone_and_named(
    store: RolloutStore, caplog: pytest.LogCaptureFixture
) -> None:
    (store.root / "step_20.bak").mkdir()
    (store.root / "notes.txt").write_text("mine")
    (store.root / ".step_4.tmp").mkdir()  # of a killed run
    store.write(metadata(4), ROLLOUTS)
    store.delete_before(31)
    store.clear()
    assert sorted(path.name for path in store.root.iterdir()) == ["notes.txt", "step_20.bak"]
    assert "step_20.bak" in caplog.text
