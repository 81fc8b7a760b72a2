"""The batches of reinforcement learning: the orchestrator's rollouts."""

from __future__ import annotations

from torchrl_ckpt.plugin_api.plugin import Json
from torchrl_ckpt.run.polling import Deadline, wait_for
from torchrl_ckpt.run.rollout_store import Rollout, RolloutStore
from torchrl_ckpt.trainer.distributed import World
from torchrl_ckpt.trainer.packing import TrainSample
from torchrl_ckpt.trainer.source import TrainBatch


class RolloutSource:
    """Waits for each step's rollouts. It has no state: what comes next is the orchestrator's part
    of the checkpoint."""

    provides = frozenset({"advantages", "old_logprobs"})

    def __init__(
        self, directory: RolloutStore, *, attempt: int, timeout: float, world: World
    ) -> None:
        self._directory = directory
        self._attempt = attempt
        self._timeout = timeout
        self._world = world

    def batch(self, step: int) -> TrainBatch:
        batch = wait_for(
            lambda: self._directory.read(step, self._attempt),
            f"the rollouts of step {step} in {self._directory.root}",
            Deadline(self._timeout, "trainer.rollout_timeout"),
        )
        share = batch.rollouts[self._world.rank :: self._world.size]
        return TrainBatch(
            [_sample(rollout) for rollout in share],
            temperature=batch.temperature or 1.0,
            metrics={"policy_version": batch.policy_version},
        )

    def state_dict(self) -> Json:
        return {}

    def load_state_dict(self, state: Json) -> None:
        pass


def _sample(rollout: Rollout) -> TrainSample:
    before = len(rollout.prompt)
    return TrainSample(
        token_ids=rollout.prompt + rollout.completion,
        learned=[False] * before + [True] * len(rollout.completion),
        advantage=rollout.advantage,
        old_logprobs=[0.0] * before + rollout.logprobs,
    )
