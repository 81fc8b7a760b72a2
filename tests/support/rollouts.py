"""Rollouts and the metadata of their batches, with defaults."""

from __future__ import annotations

from collections.abc import Sequence

from torchrl_ckpt.run.rollout_store import BatchMetadata, Rollout

POLICY_VERSION = 3


def rollout(
    problem: str,
    prompt: Sequence[int],
    completion: Sequence[int],
    logprobs: Sequence[float],
    *,
    reward: float = 0.0,
    advantage: float = 0.0,
) -> Rollout:
    """A rollout of `POLICY_VERSION`."""
    return Rollout(
        problem=problem,
        prompt=list(prompt),
        completion=list(completion),
        logprobs=list(logprobs),
        is_truncated=False,
        reward=reward,
        metrics={},
        advantage=advantage,
        policy_version=POLICY_VERSION,
        weights_id=f"weights of {problem}",
    )


def metadata(
    step: int, *, attempt: int = 1, policy_version: int = POLICY_VERSION, temperature: float = 0.7
) -> BatchMetadata:
    return BatchMetadata(step, attempt, policy_version, temperature, {"reward/mean": 0.75})
