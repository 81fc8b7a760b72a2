"""A policy appears under its version once it is complete, and is never another attempt's."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from torchrl_ckpt.run.weight_store import Canary, Policy, WeightStore

FIRST, SECOND = "5a" * 16, "c3" * 16


def policy(version: int, attempt_id: str = FIRST, *, last: bool = False) -> Policy:
    return Policy(version, attempt_id, last, Canary([[1, 2]], [[-0.5]], "float32"), "kind:abc")


def export(directory: Path) -> None:
    (directory / "model.safetensors").write_bytes(b"weights")


def fail(directory: Path) -> None:
    export(directory)
    raise OSError("disk full")


def publish(
    weights: WeightStore, policy: Policy, exporter: Callable[[Path], None] = export
) -> None:
    weights.write(policy.version, exporter, policy)


def directories(weights: WeightStore) -> list[str]:
    return sorted(path.name for path in weights.root.iterdir())


@pytest.fixture(name="weights")
def make_store(tmp_path: Path) -> WeightStore:
    store = WeightStore(tmp_path / "weights")
    store.clear()
    return store


def test_a_published_policy_is_read_by_version_and_attempt(weights: WeightStore) -> None:
    publish(weights, policy(3))
    assert weights.read(3, attempt_id=FIRST) == policy(3)
    assert weights.read(3, attempt_id=SECOND) is None
    assert weights.read(4, attempt_id=FIRST) is None


def test_a_failed_publication_leaves_no_policy(weights: WeightStore) -> None:
    with pytest.raises(OSError, match="disk full"):
        publish(weights, policy(3), fail)
    assert weights.read(3, attempt_id=FIRST) is None
    publish(weights, policy(3))
    assert weights.read(3, attempt_id=FIRST) == policy(3)


def test_the_last_policy_of_an_attempt_says_that_training_has_ended(weights: WeightStore) -> None:
    publish(weights, policy(1))
    assert weights.last(attempt_id=FIRST) is None
    publish(weights, policy(2, last=True))
    assert weights.last(attempt_id=FIRST) == policy(2, last=True)
    assert weights.last(attempt_id=SECOND) is None


def test_a_final_model_without_a_policy_is_not_served(weights: WeightStore) -> None:
    weights.write(40, export)
    assert weights.path(40).is_dir()
    assert weights.read(40, attempt_id=FIRST) is None


def test_the_leftovers_of_a_killed_replacement_do_not_prevent_the_next_one(
    weights: WeightStore,
) -> None:
    weights.write(40, export)
    (weights.root / ".step_40.replaced.tmp").mkdir()
    export(weights.root / ".step_40.replaced.tmp")
    weights.write(40, export)
    assert directories(weights) == ["step_40"]


def test_a_new_attempt_deletes_policies_and_keeps_final_models(weights: WeightStore) -> None:
    publish(weights, policy(1))
    publish(weights, policy(2, last=True))
    weights.write(40, export)
    weights.clear()
    assert directories(weights) == ["step_2", "step_40"]


def test_policies_before_the_one_in_use_are_deleted_except_final_models(
    weights: WeightStore,
) -> None:
    weights.write(1, export)
    for version in (2, 3, 4):
        publish(weights, policy(version))
    weights.delete_before(4)
    assert directories(weights) == ["step_1", "step_4"]


@pytest.mark.parametrize(
    "content", ["", "{", "[]", "null", '{"attempt_id": 5}', "[" * 100_000, "\0" * 4096]
)
def test_a_torn_policy_file_stops_nothing_and_is_named(
    weights: WeightStore, caplog: pytest.LogCaptureFixture, content: str
) -> None:
    publish(weights, policy(2))
    (weights.path(2) / "policy.json").write_text(content)
    assert weights.read(2, attempt_id=FIRST) is None
    assert weights.last(attempt_id=FIRST) is None
    weights.clear()
    weights.delete_before(4)
    assert caplog.text.count("step_2/policy.json") == 1
    publish(weights, policy(2))
    assert weights.read(2, attempt_id=FIRST) == policy(2)


def test_names_that_are_not_its_own_are_left_alone_and_named(
    weights: WeightStore, caplog: pytest.LogCaptureFixture
) -> None:
    foreign = ["step_20.bak", "step_", "step_x", "step_07", ".step_3.tmp.old", "notes.txt"]
    for name in foreign:
        (weights.root / name).mkdir()
    (weights.root / "step_8").write_text("a file")
    (weights.root / ".step_9.tmp").mkdir()  # of a killed run
    publish(weights, policy(3, last=True))
    weights.clear()
    assert weights.last(attempt_id=FIRST) == policy(3, last=True)
    weights.delete_before(30)
    assert directories(weights) == sorted([*foreign, "step_3", "step_8"])
    for name in foreign:
        assert name in caplog.text
