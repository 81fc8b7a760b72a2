"""Rollouts and the metadata of their batches, with defaults."""

from __future__ import annotations

from collections.abc import Sequence

from torchrl_ckpt.run.rollout_store import BatchMetadata, Rollout

POLICY_VERSION = 3
ATTEMPT_ID = "5a" * 16
"""The attempt that the policies and batches of tests belong to, unless they say otherwise."""


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
    step: int,
    *,
    attempt_id: str = ATTEMPT_ID,
    policy_version: int = POLICY_VERSION,
    temperature: float = 0.7,
) -> BatchMetadata:
    state = {"async_level": 1, "generated": {"step": step}, "problems": {"position": step}}
    metrics = {"reward/mean": 0.75}
    return BatchMetadata(
        step, attempt_id, policy_version, temperature, "float32", 0.0, state, metrics
    )
