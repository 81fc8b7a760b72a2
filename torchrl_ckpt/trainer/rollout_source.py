"""The batches of reinforcement learning: rollouts from the orchestrator."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal

import numpy as np

from torchrl_ckpt.plugin_api.errors import DataError
from torchrl_ckpt.plugin_api.plugin import Json
from torchrl_ckpt.run.polling import Deadline, wait_for
from torchrl_ckpt.run.rollout_store import BatchMetadata, RolloutBatch, RolloutStore
from torchrl_ckpt.trainer.packing import TrainSample
from torchrl_ckpt.trainer.source import DrawnBy, TrainBatch


class RolloutSource:
    """Waits for each step's rollouts.

    It has no state: which rollouts come next is in the orchestrator's part of a checkpoint.
    """

    provides = frozenset({"advantages", "old_logprobs"})

    def __init__(
        self,
        rollouts: RolloutStore,
        *,
        attempt_id: str,
        timeout: float,
        stop_requested: Callable[[], bool] = lambda: False,
        rank: int,
        world_size: int,
    ) -> None:
        self._rollouts = rollouts
        self._attempt_id = attempt_id
        self._timeout = timeout
        self._stop_requested = stop_requested
        self._rank = rank
        self._world_size = world_size

    def batch(self, step: int) -> TrainBatch | None:
        """Wait for the batch of `step` and return this rank's share of it.

        Returns None as soon as `stop_requested` returns true.

        Raises `WaitTimeout` after `timeout` seconds, `DataError` for a batch that must not be used,
        such as one with numbers that are not finite.
        """
        store = self._rollouts

        def look() -> RolloutBatch | Literal["stopped"] | None:
            return "stopped" if self._stop_requested() else store.read(step, self._attempt_id)

        batch = wait_for(
            look,
            f"the rollouts of step {step} in {store.root}",
            Deadline(self._timeout, "trainer.rollout_timeout"),
        )
        if not isinstance(batch, RolloutBatch):
            return None
        _check_finite(batch)
        share = range(self._rank, len(batch.prompts), self._world_size)
        return TrainBatch(
            [_sample(batch, index) for index in share],
            temperature=batch.metadata.temperature or 1.0,
            metrics={"policy_version": batch.metadata.policy_version},
            drawn_by=_drawn_by(batch.metadata),
        )

    def put_back(self) -> None:
        pass

    def state_dict(self) -> Json:
        return {}

    def load_state_dict(self, state: Json) -> None:
        pass


def _sample(batch: RolloutBatch, index: int) -> TrainSample:
    prompt, completion = batch.prompts[index].tolist(), batch.completions[index].tolist()
    return TrainSample(
        token_ids=prompt + completion,
        learned=[False] * len(prompt) + [True] * len(completion),
        advantage=float(batch.advantages[index]),
        old_logprobs=[0.0] * len(prompt) + batch.logprobs[index].tolist(),
        name=f"problem {batch.problems[index]!r}",
    )


def _drawn_by(metadata: BatchMetadata) -> DrawnBy | None:
    if metadata.policy_version != metadata.step - 1:
        return None
    truncation = math.inf if metadata.truncation is None else metadata.truncation
    return DrawnBy(metadata.engine_dtype, truncation)


def _check_finite(batch: RolloutBatch) -> None:
    """Raise `DataError` for the first rollout that has a number that is not finite."""
    for index, problem in enumerate(batch.problems):
        columns = {
            "reward": batch.rewards[index],
            "advantage": batch.advantages[index],
            "log-probabilities": batch.logprobs[index],
        }
        for name, values in columns.items():
            if not np.isfinite(values).all():
                raise DataError(
                    f"step {batch.metadata.step}: rollout {index} (problem {problem!r}) has "
                    f"{_first_nonfinite(values)} among its {name}, so the step is not trained on. "
                    "Rewards come from the environment, log-probabilities from the engine: look "
                    "there"
                )


def _first_nonfinite(values: np.ndarray) -> float:
    flat = np.ravel(values)
    return float(flat[~np.isfinite(flat)][0])
