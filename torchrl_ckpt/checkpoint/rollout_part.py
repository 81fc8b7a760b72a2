"""The orchestrator's part of a checkpoint: its state, and the batches that are not trained on yet.

The orchestrator writes it when it is asked to. A run that leaves does not wait for the
orchestrator, which may have died: `write_from_files` makes the part of what it has left in the
run's directory. For a batch that is not generated yet such a part carries the policy that has to
generate it, so that a resumed run generates the same batch.
"""

from __future__ import annotations

import itertools
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Literal

from pydantic import ConfigDict, Field

from torchrl_ckpt.checkpoint.layout import STATE
from torchrl_ckpt.checkpoint.part import finish_part, open_part
from torchrl_ckpt.checkpoint.stored_json import (
    Step,
    StoredModel,
    damage_unless_fit,
    read_stored,
)
from torchrl_ckpt.plugin_api.checkpoint_backends import FileRecord
from torchrl_ckpt.plugin_api.durable_files import (
    digest_file,
    fsync_directory,
    fsync_file,
    make_directory,
    record_json,
    recorded_file,
)
from torchrl_ckpt.plugin_api.errors import CheckpointDamaged, CheckpointFailed
from torchrl_ckpt.plugin_api.plugin import Json
from torchrl_ckpt.plugin_api.untrusted_files import is_below
from torchrl_ckpt.run.attempt import Attempt
from torchrl_ckpt.run.rollout_store import METADATA, TENSORS, BatchMetadata, RolloutStore
from torchrl_ckpt.run.weight_store import WeightStore

ORCHESTRATOR = "orchestrator"


class _Policies(StoredModel):
    model_config = ConfigDict(extra="ignore")

    policies: list[Step] = Field(default_factory=list)


def write_part(
    directory: Path,
    step: int,
    state: Mapping[str, Json],
    carried: Sequence[int],
    rollouts: RolloutStore,
) -> None:
    """Write the part of `step` to `directory`: `state` is the orchestrator's after the last of the
    `carried` batches, which are in `rollouts`."""
    finish_part(directory, _write(directory, step, state, carried, (), rollouts))


def write_from_files(partial: Path, step: int, attempt: Attempt) -> None:
    """Write the orchestrator's part of `step`, unless it has begun to do so itself.

    Raises `CheckpointFailed` where the run's directory lacks something that belongs in it.
    """
    rollouts, weights = RolloutStore(attempt.run.rollouts), WeightStore(attempt.run.weights)
    try:
        directory = open_part(partial, ORCHESTRATOR)
    except FileExistsError:
        return
    latest = _metadata(rollouts, step, attempt)
    async_level = latest.state["async_level"]
    carried: list[int] = []
    for number in range(step + 1, step + async_level + 1):
        metadata = rollouts.read_metadata(number, attempt.id)
        if metadata is None:
            break
        latest = metadata
        carried.append(number)
    missing = range(latest.step + 1, step + async_level + 1)
    policies = sorted({max(0, number - 1 - async_level) for number in missing})
    for version in policies:
        if weights.read(version, attempt.id) is None:
            raise CheckpointFailed(
                f"{weights.path(version)} is gone: the policy that has to generate batch "
                f"{missing[0]}"
            )
    records = _write(directory, step, latest.state, carried, policies, rollouts)
    for version in policies:
        records += _link_policy(weights.path(version), directory, f"weights/step_{version}")
    finish_part(directory, records)


def restore_policies(part: Path, weights: WeightStore, attempt_id: str) -> None:
    """Publish the policies that the orchestrator's `part` carries, as those of `attempt_id`.

    Raises `CheckpointDamaged`.
    """
    for version in read_stored(part / STATE, _Policies).policies:
        directory = carried_directory(part, "weights", version)
        with damage_unless_fit(directory, FileNotFoundError):
            weights.restore(directory, version, attempt_id)


def carried_directory(part: Path, kind: Literal["rollouts", "weights"], step: int) -> Path:
    """The directory of a batch or a policy that the orchestrator's `part` carries.

    Raises `CheckpointDamaged` where a link leads out of the part.
    """
    directory = part / kind / f"step_{step}"
    if not is_below(part, directory):
        raise CheckpointDamaged(f"{directory} is reached by a link that leads out of {part}")
    return directory


def _metadata(rollouts: RolloutStore, step: int, attempt: Attempt) -> BatchMetadata:
    found = rollouts.read_metadata(step, attempt.id)
    if found is None:
        raise CheckpointFailed(
            f"{rollouts.path(step)} is gone, so the orchestrator's state is unknown"
        )
    return found


def _write(
    directory: Path,
    step: int,
    state: Mapping[str, Json],
    carried: Sequence[int],
    policies: Sequence[int],
    rollouts: RolloutStore,
) -> list[FileRecord]:
    content = {"step": step, **state, "carried": list(carried)}
    if policies:
        content["policies"] = list(policies)
    records = [record_json(directory, STATE, content)]
    for number, name in itertools.product(carried, (METADATA, TENSORS)):
        records.append(
            _copied(rollouts.path(number) / name, directory, f"rollouts/step_{number}/{name}")
        )
    return records


def _copied(source: Path, root: Path, relative: str) -> FileRecord:
    with recorded_file(root, relative) as (stream, records):
        stream.write(source.read_bytes())
    return records[0]


def _link_policy(source: Path, root: Path, relative: str) -> Iterator[FileRecord]:
    """Add the files of a policy without copying them, if possible: they never change."""
    target = root / relative
    make_directory(target)
    for path in sorted(source.iterdir()):
        try:
            os.link(path, target / path.name)
        except OSError:  # Another file system, or one without links.
            shutil.copyfile(path, target / path.name)
        fsync_file(target / path.name)
        yield FileRecord(f"{relative}/{path.name}", *digest_file(target / path.name))
    fsync_directory(target)
