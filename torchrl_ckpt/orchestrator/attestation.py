"""Has the inference server load a policy, and makes sure that it did."""

from __future__ import annotations

import logging
from pathlib import Path

from torchrl_ckpt.errors import WrongPolicy
from torchrl_ckpt.exchange.client import InferenceClient
from torchrl_ckpt.exchange.weights import Policy

_ATTEMPTS = 2

_log = logging.getLogger(__name__)


async def serve_policy(
    client: InferenceClient, policy: Policy, directory: Path, *, tolerance: float
) -> None:
    """Return once the server demonstrably serves `policy`.

    It must name the version, and answer the canary with the trainer's log-probabilities to within
    `tolerance` (absolute, natural log). Raises `WrongPolicy` after a second try.
    """
    for attempt in range(1, _ATTEMPTS + 1):
        await client.load_weights(directory, policy.version)
        fault = await _fault(client, policy, tolerance)
        if fault is None:
            return
        _log.warning("load %d of the policy of step %d: %s", attempt, policy.version, fault)
    raise WrongPolicy(
        f"the inference server does not serve the policy of step {policy.version}: {fault}. "
        "No rollout was generated with it"
    )


async def _fault(client: InferenceClient, policy: Policy, tolerance: float) -> str | None:
    loaded = await client.loaded()
    if loaded.version != policy.version:
        return f"it says that it serves step {loaded.version}"
    answers = await client.logprobs(policy.canary.sequences)
    differences = [
        abs(answer - expected)
        for given, wanted in zip(answers, policy.canary.logprobs, strict=True)
        for answer, expected in zip(given, wanted, strict=True)
    ]
    # Neither `any(... > tolerance)` nor `max(...)`: both let NaN pass.
    wrong = [difference for difference in differences if not difference <= tolerance]
    if wrong:
        return (
            "its log-probabilities of known sequences differ from the trainer's, by "
            f"{wrong[0]:.2e} at the first place that is more than {tolerance:.0e} off"
        )
    return None
