"""Batches of rollouts, from the orchestrator to the trainer: one directory per step.

rollouts/step_7/batch.safetensors   tokens and numbers; those of all rollouts end to end
rollouts/step_7/batch.json          step, attempt's id, policy, metrics; for each rollout its
                                    problem and the weights that generated it
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import TypeAdapter, ValidationError
from safetensors import SafetensorError
from safetensors.numpy import load, save

from torchrl_ckpt.plugin_api.errors import CheckpointDamaged, DataError
from torchrl_ckpt.plugin_api.plugin import Json
from torchrl_ckpt.plugin_api.untrusted_files import read_bounded_json
from torchrl_ckpt.run.step_directories import StepDirectories, copy_carried

TENSORS = "batch.safetensors"
METADATA = "batch.json"

FORMAT = 3

_MAX_METADATA_BYTES = 1024 * 1024 * 1024  # About ten million rollouts.


@dataclass(frozen=True)
class Rollout:
    """One scored completion of one problem.

    `logprobs` has a natural-log probability for each token of the completion, stop token included,
    under the distribution that it was drawn from. `weights_id` names the weights that drew all of
    them, which were verified to be those of step `policy_version` (see `PolicySpan`).
    `is_truncated`: it reached `max_tokens`. `metrics` are the environment's, not stored.
    """

    problem: str
    prompt: list[int]
    completion: list[int]
    logprobs: list[float]
    is_truncated: bool
    reward: float
    metrics: Mapping[str, float]
    advantage: float
    policy_version: int
    weights_id: str


@dataclass(frozen=True)
class BatchMetadata:
    """How the batch of `step` was generated, and the row of metrics about it.

    `engine_dtype` is what the engine computed in, if known. Sampling from the likeliest tokens
    alone may have raised log-probabilities by up to `truncation` nats; None: by any amount.
    `state` is the orchestrator's after this batch, as in its part of a checkpoint.
    """

    step: int
    attempt_id: str
    policy_version: int
    temperature: float
    engine_dtype: str | None
    truncation: float | None
    state: Mapping[str, Json]
    metrics: Mapping[str, int | float]


@dataclass(frozen=True)
class RolloutBatch:
    """Everything that a step trains on, one entry per rollout in each column.

    `problems` are names. An entry of `prompts` and `completions` is an int64 array of tokens, of
    `logprobs` a float32 array with a value for each token of the completion. `rewards` and
    `advantages` are float64 arrays.
    """

    metadata: BatchMetadata
    problems: Sequence[str]
    prompts: Sequence[np.ndarray]
    completions: Sequence[np.ndarray]
    logprobs: Sequence[np.ndarray]
    rewards: np.ndarray
    advantages: np.ndarray


@dataclass(frozen=True)
class _Origins:
    """What `batch.json` holds besides the metadata: where each rollout comes from."""

    problems: list[str]
    policy_versions: list[int]
    weights_ids: list[str]


_BATCH_METADATA = TypeAdapter(BatchMetadata)
_ORIGINS = TypeAdapter(_Origins)


class RolloutStore:
    """A run's `rollouts`. A batch appears complete and durable, by one rename."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._directories = StepDirectories(root)

    def path(self, step: int) -> Path:
        return self._directories.path(step)

    def clear(self) -> None:
        """Delete the batches of earlier attempts."""
        self._directories.clear_leftovers()
        for step in self._directories.steps():
            shutil.rmtree(self.path(step))

    def write(self, metadata: BatchMetadata, rollouts: Sequence[Rollout]) -> None:
        content = {
            "format": FORMAT,
            **asdict(metadata),
            "problems": [rollout.problem for rollout in rollouts],
            "policy_versions": [rollout.policy_version for rollout in rollouts],
            "weights_ids": [rollout.weights_id for rollout in rollouts],
        }
        with self._directories.new(metadata.step) as temporary:
            (temporary / TENSORS).write_bytes(save(_columns(rollouts)))
            (temporary / METADATA).write_text(json.dumps(content))

    def restore(self, directory: Path, attempt_id: str) -> BatchMetadata:
        """Copy the batch in `directory`, of an earlier attempt, as one of `attempt_id`.

        Raises `CheckpointDamaged` for one that is not what this program writes, and `DataError` for
        another format.
        """
        path = directory / METADATA
        try:
            content = read_bounded_json(path, _MAX_METADATA_BYTES)
        except OSError as error:
            raise CheckpointDamaged(f"{path} cannot be read ({error.strerror})") from None
        except ValueError as error:
            raise CheckpointDamaged(f"{path} is not JSON: {error}") from None
        if not isinstance(content, dict):
            raise CheckpointDamaged(f"{path} is not the record of a batch")
        content["attempt_id"] = attempt_id
        _check_format(content, path)
        try:
            metadata, _ = _checked(content, directory)
        except DataError as error:
            raise CheckpointDamaged(str(error)) from error
        with self._directories.new(metadata.step) as temporary:
            copy_carried(directory / TENSORS, temporary / TENSORS)
            (temporary / METADATA).write_text(json.dumps(content))
        return metadata

    def read_metadata(self, step: int, attempt_id: str) -> BatchMetadata | None:
        """Return the metadata of the batch of `step`, as `read` does."""
        found = self._read_file(step, attempt_id)
        return None if found is None else found[0]

    def read(self, step: int, attempt_id: str) -> RolloutBatch | None:
        """Return the batch of `step`, or None while it does not exist or is another attempt's.

        Raises `DataError` for a batch of another format, for one that is damaged, and unless every
        rollout is known to be generated by the policy of the batch.
        """
        found = self._read_file(step, attempt_id)
        if found is None:
            return None
        metadata, origins = found
        columns = _read_columns(self.path(step), len(origins.problems))
        completion_lengths = columns["completion_lengths"]
        return RolloutBatch(
            metadata=metadata,
            problems=origins.problems,
            prompts=_split(columns["prompts"], columns["prompt_lengths"]),
            completions=_split(columns["completions"], completion_lengths),
            logprobs=_split(columns["logprobs"], completion_lengths),
            rewards=columns["rewards"],
            advantages=columns["advantages"],
        )

    def delete_before(self, step: int) -> None:
        """Delete the batches before `step`, which are trained on and saved."""
        for earlier in self._directories.steps():
            if earlier < step:
                shutil.rmtree(self.path(earlier))

    def _read_file(self, step: int, attempt_id: str) -> tuple[BatchMetadata, _Origins] | None:
        content = self._directories.read_json(step, METADATA)
        if content is None or content.get("attempt_id") != attempt_id:
            return None
        return _checked(content, self.path(step))


def _check_format(content: Json, path: Path) -> None:
    if content.get("format", 1) != FORMAT:
        raise DataError(
            f"{path} has format {content.get('format', 1)}, and this version of torchrl-ckpt reads "
            f"format {FORMAT}. Resume from a checkpoint of this version"
        )


def _checked(content: Json, directory: Path) -> tuple[BatchMetadata, _Origins]:
    path = directory / METADATA
    _check_format(content, path)
    try:
        metadata = _BATCH_METADATA.validate_python(content)
        origins = _ORIGINS.validate_python(content)
    except ValidationError as error:
        raise _damaged(path, f"{error.errors()[0]['loc']}: {error.errors()[0]['msg']}") from error
    step, version, ids = metadata.step, metadata.policy_version, origins.weights_ids
    num_rollouts = len(origins.problems)
    same_version = origins.policy_versions == [version] * num_rollouts
    if not (same_version and len(ids) == num_rollouts and all(ids) and version < step):
        raise DataError(
            f"{path}: not every rollout of step {step} names the verified weights of policy "
            f"{version} that generated it, so it is not trained on. Delete the directory and "
            "resume from an earlier checkpoint"
        )
    return metadata, origins


def _read_columns(directory: Path, num_rollouts: int) -> dict[str, np.ndarray]:
    """Read the numbers of a batch, whose columns must fit each other."""
    path = directory / TENSORS
    try:
        columns = load(path.read_bytes())
        lengths = columns["prompt_lengths"], columns["completion_lengths"]
        counts = [*map(len, lengths), len(columns["advantages"])]
        totals = [int(part.sum()) for part in (lengths[0], lengths[1], lengths[1])]
        found = [len(columns[name]) for name in ("prompts", "completions", "logprobs")]
        if counts != [num_rollouts] * 3 or totals != found or min(map(np.min, lengths)) < 0:
            raise ValueError("its columns do not fit each other")
    except (SafetensorError, KeyError, ValueError, TypeError) as error:
        raise _damaged(path, str(error)) from error
    return columns


def _damaged(path: Path, why: str) -> DataError:
    return DataError(
        f"{path} is damaged ({why}), so it is not trained on. Resume from the latest checkpoint"
    )


def _split(column: np.ndarray, lengths: np.ndarray) -> list[np.ndarray]:
    """Split `column` into one array per rollout."""
    return np.split(column, np.cumsum(lengths)[:-1])


def _columns(rollouts: Sequence[Rollout]) -> dict[str, np.ndarray]:
    def end_to_end(parts: list[list[Any]], dtype: type) -> np.ndarray:
        return np.array([item for part in parts for item in part], dtype=dtype)

    prompts = [rollout.prompt for rollout in rollouts]
    completions = [rollout.completion for rollout in rollouts]
    return {
        "prompts": end_to_end(prompts, np.int64),
        "prompt_lengths": np.array([len(prompt) for prompt in prompts], dtype=np.int64),
        "completions": end_to_end(completions, np.int64),
        "completion_lengths": np.array([len(tokens) for tokens in completions], dtype=np.int64),
        "logprobs": end_to_end([rollout.logprobs for rollout in rollouts], np.float32),
        "rewards": np.array([rollout.reward for rollout in rollouts], dtype=np.float64),
        "advantages": np.array([rollout.advantage for rollout in rollouts], dtype=np.float64),
    }
