"""Batches of rollouts, from the orchestrator to the trainer: one directory a step.

rollouts/step_7/batch.safetensors   tokens and numbers, samples laid end to end
rollouts/step_7/batch.json          who made it, with which policy and loads, and its metrics
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file, save_file

from torchrl_ckpt.plugin_api.errors import DataError

TENSORS = "batch.safetensors"
ABOUT = "batch.json"


@dataclass(frozen=True)
class Rollout:
    """One completion of one problem.

    `logprobs` has a natural-log probability for each token of the completion, stop token included,
    under the distribution that it was drawn from. `load` names the weights that drew all of them,
    which were checked to be those of step `policy_version` (see `PolicySpan`).
    """

    problem: str
    prompt: list[int]
    completion: list[int]
    logprobs: list[float]
    reward: float
    advantage: float
    policy_version: int
    load: str


@dataclass(frozen=True)
class RolloutBatch:
    """Everything that step `step` trains on."""

    step: int
    attempt: int
    policy_version: int
    temperature: float
    rollouts: list[Rollout]
    metrics: Mapping[str, float]


class RolloutStore:
    """A run's `rollouts`. Batches appear whole, by a rename."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def path(self, step: int) -> Path:
        return self.root / f"step_{step}"

    def clear(self) -> None:
        """Forget what an earlier attempt left."""
        shutil.rmtree(self.root, ignore_errors=True)
        self.root.mkdir(parents=True)

    def write(self, batch: RolloutBatch) -> None:
        temporary = self.root / f".step_{batch.step}.tmp"
        temporary.mkdir(parents=True)
        save_file(_columns(batch.rollouts), temporary / TENSORS)
        about = {
            "step": batch.step,
            "attempt": batch.attempt,
            "policy_version": batch.policy_version,
            "temperature": batch.temperature,
            "problems": [rollout.problem for rollout in batch.rollouts],
            "policy_versions": [rollout.policy_version for rollout in batch.rollouts],
            "loads": [rollout.load for rollout in batch.rollouts],
            "metrics": dict(batch.metrics),
        }
        (temporary / ABOUT).write_text(json.dumps(about))
        os.rename(temporary, self.path(batch.step))

    def read(self, step: int, attempt: int) -> RolloutBatch | None:
        """The batch of `step`, or None while it is not there or another attempt's."""
        directory = self.path(step)
        try:
            about = json.loads((directory / ABOUT).read_text())
        except FileNotFoundError:
            return None
        if about["attempt"] != attempt:
            return None
        return read_batch(directory, about)

    def forget(self, through_step: int) -> None:
        """Remove the batches up to and with `through_step`: they are trained on and saved."""
        for directory in self.root.glob("step_*"):
            if int(directory.name.removeprefix("step_")) <= through_step:
                shutil.rmtree(directory)


def read_batch(directory: Path, about: Mapping[str, Any] | None = None) -> RolloutBatch:
    """A batch from its directory, wherever that lies.

    Raises `DataError` unless every rollout is known to be by the policy of the batch.
    """
    about = about or json.loads((directory / ABOUT).read_text())
    _check_policies(about, directory)
    columns = load_file(directory / TENSORS)
    prompts = np.split(columns["prompts"], np.cumsum(columns["prompt_lengths"])[:-1])
    bounds = np.cumsum(columns["completion_lengths"])[:-1]
    completions = np.split(columns["completions"], bounds)
    logprobs = np.split(columns["logprobs"], bounds)
    rollouts = [
        Rollout(
            problem,
            prompts[i].tolist(),
            completions[i].tolist(),
            logprobs[i].tolist(),
            float(columns["rewards"][i]),
            float(columns["advantages"][i]),
            about["policy_versions"][i],
            about["loads"][i],
        )
        for i, problem in enumerate(about["problems"])
    ]
    return RolloutBatch(
        about["step"],
        about["attempt"],
        about["policy_version"],
        about["temperature"],
        rollouts,
        about["metrics"],
    )


def _check_policies(about: Mapping[str, Any], directory: Path) -> None:
    version, num_rollouts = about["policy_version"], len(about["problems"])
    known = about.get("policy_versions") == [version] * num_rollouts
    loads = about.get("loads", [])
    if not (known and len(loads) == num_rollouts and all(loads) and version < about["step"]):
        raise DataError(
            f"{directory / ABOUT}: not every rollout of step {about['step']} names the checked "
            f"load of policy {version} that generated it, so it is not trained on. Remove the "
            "directory, or resume from a checkpoint of this version of torchrl-ckpt"
        )


def _columns(rollouts: list[Rollout]) -> dict[str, np.ndarray]:
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
