"""A policy shows under its version when it is whole, and never another attempt's."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from torchrl_ckpt.run.weight_store import Canary, Policy, WeightStore


def policy(version: int, attempt: int = 1, *, last: bool = False) -> Policy:
    return Policy(version, attempt, last, Canary([[1, 2]], [[-0.5]], "float32"), "kind:abc")


def export(directory: Path) -> None:
    (directory / "model.safetensors").write_bytes(b"weights")


def fail(directory: Path) -> None:
    export(directory)
    raise OSError("disk full")


def publish(weights: WeightStore, policy: Policy, how: Callable[[Path], None]) -> None:
    weights.write(policy.version, how, policy)


@pytest.fixture
def weights(tmp_path: Path) -> WeightStore:
    directory = WeightStore(tmp_path / "weights")
    directory.clear()
    return directory


def test_what_is_published_is_found_by_version_and_attempt(weights: WeightStore) -> None:
    publish(weights, policy(3), export)
    assert weights.read(3, attempt=1) == policy(3)
    assert weights.read(3, attempt=2) is None
    assert weights.read(4, attempt=1) is None


def test_a_failed_publication_shows_nothing(weights: WeightStore) -> None:
    with pytest.raises(OSError, match="disk full"):
        publish(weights, policy(3), fail)
    assert weights.read(3, attempt=1) is None
    publish(weights, policy(3), export)
    assert weights.read(3, attempt=1) == policy(3)


def test_the_end_of_training_is_told_by_the_policy_that_ended_it(weights: WeightStore) -> None:
    publish(weights, policy(1), export)
    assert weights.last(attempt=1) is None
    publish(weights, policy(2, last=True), export)
    assert weights.last(attempt=1) == policy(2, last=True)


def test_a_model_to_keep_is_no_policy(weights: WeightStore) -> None:
    weights.write(40, export)
    assert weights.path(40).is_dir()
    assert weights.read(40, attempt=1) is None


def test_what_a_killed_run_left_of_a_replacement_is_not_in_the_way(
    weights: WeightStore,
) -> None:
    weights.write(40, export)
    (weights.root / ".step_40.replaced.tmp").mkdir()
    export(weights.root / ".step_40.replaced.tmp")
    weights.write(40, export)
    assert [path.name for path in weights.root.iterdir()] == ["step_40"]


def test_a_new_start_forgets_policies_and_keeps_finished_models(weights: WeightStore) -> None:
    publish(weights, policy(1), export)
    publish(weights, policy(2, last=True), export)
    weights.write(40, export)
    weights.clear()
    assert sorted(path.name for path in weights.root.iterdir()) == ["step_2", "step_40"]
