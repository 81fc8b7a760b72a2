"""Makes an inference server load a policy and verifies that it serves exactly that policy."""

from __future__ import annotations

import itertools
import logging
import math
import statistics
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from torchrl_ckpt.plugin_api.errors import WrongPolicy
from torchrl_ckpt.run.weight_store import Canary, Policy
from torchrl_ckpt.serving_api.client import InferenceClient
from torchrl_ckpt.serving_api.protocol import LoadedWeights

_LOAD_TRIES = 2

# The largest difference of log-probabilities from the trainer's. Measured differences are in
# docs/serving.md.
_FLOAT32_TOLERANCE_NATS = 1e-4
_16_BIT_TOLERANCES_NATS = {"bfloat16": 0.2, "float16": 0.2}

# Answers are those of the previous policy if their mean difference from its canary is less than
# this share of their mean difference from the new one's.
_PREVIOUS_POLICY_RATIO = 0.5

# Weights were not replaced if the server's own answers have moved, on average, by less than this
# share of what the trainer's canary has moved. This is checked only where the canary has moved by
# at least the number of nats below; see docs/serving.md.
_MIN_MOVEMENT_RATIO = 0.25
_MIN_MOVEMENT_FLOAT32_NATS = 1e-5
_MIN_MOVEMENT_16_BIT_NATS = 1e-4
_MIN_MOVEMENT_MIXED_NATS = 0.05

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class CanaryAnswer:
    """A policy's canary and the log-probabilities that a server returned for it."""

    canary: Canary
    logprobs: list[list[float]]


@dataclass(frozen=True)
class Attestation:
    """The id of weights that are verified to be a policy, and how far its canary was from the
    trainer's.

    Differences are absolute, in nats, over every token of every sequence. `dtype` is what the
    engine computes in, if it says so.
    """

    weights_id: str
    mean_difference: float
    max_difference: float
    answer: CanaryAnswer
    dtype: str | None


async def attest(
    client: InferenceClient,
    policy: Policy,
    directory: Path,
    *,
    tolerance: float | None,
    previous: Policy | None = None,
    latest_answer: CanaryAnswer | None = None,
) -> Attestation:
    """Load `policy` from `directory` and return once the server is verified to serve it.

    The server must report the version, the directory and a weights id, report the trainer's digest
    (if both digests are of one kind), and return the trainer's log-probabilities for the canary to
    within `tolerance` (None: by the dtypes). They must not be nearer to those of the `previous`
    policy, and must differ from the server's own `latest_answer` where the trainer's have changed.
    The canary must be answered with that weights id. Raises `WrongPolicy` after a second try.
    """
    for number in range(1, _LOAD_TRIES + 1):
        try:
            return await _load_and_verify(
                client, policy, directory, tolerance, previous, latest_answer
            )
        except WrongPolicy as error:
            fault = error
            _log.warning("try %d to load the policy of step %d: %s", number, policy.version, fault)
    raise WrongPolicy(
        f"{client.base_url} does not serve the policy of step {policy.version} after "
        f"{_LOAD_TRIES} tries: {fault}. No rollout was generated with it"
    ) from fault


async def _load_and_verify(
    client: InferenceClient,
    policy: Policy,
    directory: Path,
    tolerance: float | None,
    previous: Policy | None,
    latest_answer: CanaryAnswer | None,
) -> Attestation:
    loaded = await client.load_weights(directory, policy.version)
    weights_id = _check_report(loaded, policy, directory)
    scores = await client.logprobs(policy.canary.sequences)
    if scores.weights_ids != {weights_id}:
        raise WrongPolicy(
            f"the canary was not answered by the weights just loaded ({weights_id}) but by "
            f"{_listed(scores.weights_ids)}. Another job may be using the server"
        )
    if tolerance is None:
        tolerance = max(_tolerance(policy.canary.dtype), _tolerance(loaded.dtype))
    differences = _check_canary(policy.canary, scores.logprobs, tolerance)
    if previous is not None:
        _check_not_previous(previous.canary, policy.canary, scores.logprobs)
    answer = CanaryAnswer(policy.canary, scores.logprobs)
    if latest_answer is not None:
        _check_has_moved(latest_answer, answer, loaded.dtype)
    return Attestation(
        weights_id, statistics.fmean(differences), max(differences), answer, loaded.dtype
    )


def _check_report(loaded: LoadedWeights, policy: Policy, directory: Path) -> str:
    """Return the weights id that the server reports for the load of `directory`."""
    if loaded.version != policy.version or loaded.weights_id is None:
        raise WrongPolicy(
            f"it reports that it serves step {loaded.version} (weights_id {loaded.weights_id})"
        )
    if loaded.directory != str(directory.resolve()):
        raise WrongPolicy(
            f"it reports that it serves {loaded.directory}, not {directory.resolve()}"
        )
    if _comparable(policy.digest, loaded.digest) and loaded.digest != policy.digest:
        raise WrongPolicy(
            f"the digest of its weights is {loaded.digest}, of those published {policy.digest}"
        )
    return loaded.weights_id


def _comparable(first: str | None, second: str | None) -> bool:
    """Whether two digests `KIND:HEX` are of one kind; the kind includes the dtype."""
    if not (first and second):
        return False
    return first.rpartition(":")[0] == second.rpartition(":")[0]


def _tolerance(dtype: str | None) -> float:
    """The tolerance for `dtype`; an engine that reports none is held to float32's."""
    return _16_BIT_TOLERANCES_NATS.get(dtype or "float32", _FLOAT32_TOLERANCE_NATS)


def _check_canary(canary: Canary, answers: list[list[float]], tolerance: float) -> list[float]:
    """Return the difference at every token; raise `WrongPolicy` where one is too large."""
    if list(map(len, answers)) != list(map(len, canary.logprobs)):
        raise WrongPolicy("it did not answer the canary with one number for each token")
    differences = _differences(answers, canary.logprobs)
    # Neither `any(... > tolerance)` nor `max(differences)`: both let NaN pass.
    wrong = [difference for difference in differences if not difference <= tolerance]
    if not wrong:
        return differences
    positions = [(row, token) for row, given in enumerate(answers) for token in range(len(given))]
    row, token = max(zip(map(_nan_as_infinity, differences), positions, strict=True))[1]
    raise WrongPolicy(
        f"its log-probabilities differ from the trainer's by more than {tolerance:.0e} nats at "
        f"{len(wrong)} of {len(differences)} tokens of the canary, the most at token {token + 2} "
        f"of {canary.sequences[row]}: expected {canary.logprobs[row][token]:.6f}, got "
        f"{answers[row][token]:.6f} (`orchestrator.client.canary_tolerance` sets the limit)"
    )


def _check_not_previous(previous: Canary, canary: Canary, answers: list[list[float]]) -> None:
    """Detect weights that were not replaced where the step is smaller than the tolerance.

    A correct engine is never much nearer to the previous policy than to this one, however coarse
    its dtype is.
    """
    rows = _common_rows(previous, canary)
    if not rows:
        return
    to_previous = statistics.fmean(_differences(_at(answers, rows), _at(previous.logprobs, rows)))
    to_policy = statistics.fmean(_differences(_at(answers, rows), _at(canary.logprobs, rows)))
    if to_previous < _PREVIOUS_POLICY_RATIO * to_policy:
        raise WrongPolicy(
            "its log-probabilities of the canary are those of the previous policy: on average "
            f"{to_previous:.2e} nats from the previous one's, {to_policy:.2e} from this one's. The "
            "weights were not replaced"
        )


def _check_has_moved(latest: CanaryAnswer, answer: CanaryAnswer, dtype: str | None) -> None:
    """Detect weights that were not replaced where the step is below the rounding of the dtype.

    Equal weights round equally, so the server's own answers do not move then, however far they are
    from the trainer's. Those of a correct engine move at least as far as the trainer's, except for
    steps so small that the rounding of the weights swallows them.
    """
    rows = _common_rows(latest.canary, answer.canary)
    if not rows:
        return
    first, second = answer.canary.logprobs, latest.canary.logprobs
    expected = statistics.fmean(_differences(_at(first, rows), _at(second, rows)))
    moved = statistics.fmean(_differences(_at(answer.logprobs, rows), _at(latest.logprobs, rows)))
    if expected >= _min_movement(answer.canary.dtype, dtype) and (
        moved < _MIN_MOVEMENT_RATIO * expected
    ):
        raise WrongPolicy(
            "its log-probabilities of the canary have hardly changed since the policy it served "
            f"before: on average by {moved:.2e} nats, the trainer's by {expected:.2e}. The weights "
            "were not replaced"
        )


def _min_movement(trainer_dtype: str, engine_dtype: str | None) -> float:
    """The mean movement of the trainer's canary (nats) that cannot be rounding of the trainer, and
    that the rounding of the engine does not swallow."""
    if trainer_dtype in _16_BIT_TOLERANCES_NATS and trainer_dtype != engine_dtype:
        return _MIN_MOVEMENT_MIXED_NATS
    if engine_dtype in _16_BIT_TOLERANCES_NATS:
        return _MIN_MOVEMENT_16_BIT_NATS
    return _MIN_MOVEMENT_FLOAT32_NATS


def _common_rows(first: Canary, second: Canary) -> list[int]:
    """The numbers of the sequences that two canaries share."""
    pairs = zip(first.sequences, second.sequences, strict=False)
    return [row for row, (one, other) in enumerate(pairs) if one == other]


def _at(values: list[list[float]], rows: list[int]) -> list[list[float]]:
    return [values[row] for row in rows]


def _differences(first: list[list[float]], second: list[list[float]]) -> list[float]:
    pairs = zip(itertools.chain(*first), itertools.chain(*second), strict=True)
    return [abs(a - b) for a, b in pairs]


def _nan_as_infinity(difference: float) -> float:
    return math.inf if math.isnan(difference) else difference


def _listed(ids: Collection[str | None]) -> str:
    return " and ".join(sorted(name or "the weights it started with" for name in ids)) or "none"
