"""Has an inference server load a policy, and makes sure that it did."""

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

_ATTEMPTS = 2

# In nats. Measured differences are in docs/serving.md.
_FLOAT32_TOLERANCE = 1e-4
_TOLERANCES = {"bfloat16": 0.2, "float16": 0.2}

# How much nearer to the policy before must be what stands for it.
_NEARER = 0.5

# How much less than the trainer's the server's own answers may have moved, and from which mean
# movement of the trainer's on (nats) that tells anything; see docs/serving.md.
_STUCK = 0.25
_LEAST_STEP_FLOAT32 = 1e-5
_LEAST_STEP_16_BITS = 1e-4
_LEAST_STEP_MIXED = 0.05

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Answered:
    """A policy's canary and what a server answered to it."""

    canary: Canary
    answers: list[list[float]]


@dataclass(frozen=True)
class Attested:
    """The load that demonstrably is a policy, and how far its canary was from the trainer's.

    Differences are absolute, of natural logarithms, over every token of every sequence.
    """

    load: str
    mean_difference: float
    max_difference: float
    answered: Answered


async def attest(
    client: InferenceClient,
    policy: Policy,
    directory: Path,
    *,
    tolerance: float | None,
    previous: Policy | None = None,
    own: Answered | None = None,
) -> Attested:
    """Return once the server demonstrably serves `policy`.

    It must name version, directory and load, tell the digest that the trainer wrote (where theirs
    are of one kind), and answer the canary with the trainer's log-probabilities to within
    `tolerance` (None: by the dtypes), no nearer to the `previous` policy's, and otherwise than its
    `own` latest ones where the trainer's have changed; all by that load. Raises `WrongPolicy` after
    a second try.
    """
    for attempt in range(1, _ATTEMPTS + 1):
        try:
            return await _attempt(client, policy, directory, tolerance, previous, own)
        except WrongPolicy as error:
            fault = error
            _log.warning("load %d of the policy of step %d: %s", attempt, policy.version, fault)
    raise WrongPolicy(
        f"{client.base_url} does not serve the policy of step {policy.version}, asked "
        f"{_ATTEMPTS} times: {fault}. No rollout was generated with it"
    ) from fault


async def _attempt(
    client: InferenceClient,
    policy: Policy,
    directory: Path,
    tolerance: float | None,
    previous: Policy | None,
    own: Answered | None,
) -> Attested:
    loaded = await client.load_weights(directory, policy.version)
    load = _check_report(loaded, policy, directory)
    scores = await client.logprobs(policy.canary.sequences)
    if scores.weights_ids != {load}:
        raise WrongPolicy(
            f"the canary was not answered by the load just made ({load}) but by "
            f"{_named(scores.weights_ids)}; is another job using the server?"
        )
    if tolerance is None:
        tolerance = max(_tolerance(policy.canary.dtype), _tolerance(loaded.dtype))
    differences = _check_canary(policy.canary, scores.logprobs, tolerance)
    if previous is not None:
        _check_not_previous(previous.canary, policy.canary, scores.logprobs, differences)
    answered = Answered(policy.canary, scores.logprobs)
    if own is not None:
        _check_not_stuck(own, answered, loaded.dtype)
    return Attested(load, statistics.fmean(differences), max(differences), answered)


def _check_report(loaded: LoadedWeights, policy: Policy, directory: Path) -> str:
    """The load that the server says it has made of `directory`."""
    if loaded.version != policy.version or loaded.weights_id is None:
        raise WrongPolicy(
            f"it reports step {loaded.version} with the weights id {loaded.weights_id}"
        )
    if loaded.directory != str(directory.resolve()):
        raise WrongPolicy(f"it says that it serves {loaded.directory}, not {directory.resolve()}")
    if _comparable(policy.digest, loaded.digest) and loaded.digest != policy.digest:
        raise WrongPolicy(
            f"the digest of its weights is {loaded.digest}, of those published {policy.digest}"
        )
    return loaded.weights_id


def _comparable(one: str | None, other: str | None) -> bool:
    """Whether two digests are of one kind: `KIND:HEX`, where the kind names the dtype, too."""
    return bool(one and other) and one.rpartition(":")[0] == other.rpartition(":")[0]  # type: ignore[union-attr]


def _tolerance(dtype: str | None) -> float:
    """An engine that does not tell its dtype is held to float32."""
    return _TOLERANCES.get(dtype or "float32", _FLOAT32_TOLERANCE)


def _check_canary(canary: Canary, answers: list[list[float]], tolerance: float) -> list[float]:
    """The difference at every token; raises `WrongPolicy` where one is too large."""
    if list(map(len, answers)) != list(map(len, canary.logprobs)):
        raise WrongPolicy("it did not answer the canary with one number for each token")
    differences = _differences(answers, canary.logprobs)
    # Neither `any(... > tolerance)` nor `max(differences)`: both let NaN pass.
    wrong = [difference for difference in differences if not difference <= tolerance]
    if not wrong:
        return differences
    places = [(row, token) for row, given in enumerate(answers) for token in range(len(given))]
    row, token = max(zip(map(_or_infinity, differences), places, strict=True))[1]
    raise WrongPolicy(
        f"its log-probabilities differ from the trainer's by more than {tolerance:.0e} nats at "
        f"{len(wrong)} of {len(differences)} tokens of the canary, the most at token {token + 2} "
        f"of {canary.sequences[row]}: expected {canary.logprobs[row][token]:.6f}, got "
        f"{answers[row][token]:.6f} (`orchestrator.client.canary_tolerance` sets the limit)"
    )


def _check_not_previous(
    previous: Canary, canary: Canary, answers: list[list[float]], differences: list[float]
) -> None:
    """Catch weights that were not replaced, where the step was smaller than the tolerance.

    An engine that is right is never much nearer to the policy before than to this one, however
    coarse its dtype is.
    """
    if previous.sequences != canary.sequences:
        return
    to_previous = statistics.fmean(_differences(answers, previous.logprobs))
    to_policy = statistics.fmean(differences)
    if to_previous < _NEARER * to_policy:
        raise WrongPolicy(
            "its log-probabilities of the canary are those of the policy before: on average "
            f"{to_previous:.2e} nats from that one's, {to_policy:.2e} from this one's. The weights "
            "were not replaced"
        )


def _check_not_stuck(own: Answered, now: Answered, dtype: str | None) -> None:
    """Catch weights that were not replaced where the step drowns in the rounding of a coarse dtype.

    The rounding of equal weights is equal, so the server's own answers do not move then, however
    far they are from the trainer's. Those of an engine that is right move at least as far as the
    trainer's, save for steps so small that they do not get through the rounding of the weights.
    """
    if own.canary.sequences != now.canary.sequences:
        return
    wanted = statistics.fmean(_differences(now.canary.logprobs, own.canary.logprobs))
    moved = statistics.fmean(_differences(now.answers, own.answers))
    if wanted >= _least_step(now.canary.dtype, dtype) and moved < _STUCK * wanted:
        raise WrongPolicy(
            "its log-probabilities of the canary have hardly changed since the policy it served "
            f"before: on average by {moved:.2e} nats, the trainer's by {wanted:.2e}. The weights "
            "were not replaced"
        )


def _least_step(trainer: str, engine: str | None) -> float:
    """The mean movement of the trainer's canary that is certainly no rounding of its own, and gets
    through that of the engine."""
    if trainer in _TOLERANCES and trainer != engine:
        return _LEAST_STEP_MIXED
    return _LEAST_STEP_16_BITS if engine in _TOLERANCES else _LEAST_STEP_FLOAT32


def _differences(one: list[list[float]], other: list[list[float]]) -> list[float]:
    pairs = zip(itertools.chain(*one), itertools.chain(*other), strict=True)
    return [abs(got - wanted) for got, wanted in pairs]


def _or_infinity(difference: float) -> float:
    return math.inf if math.isnan(difference) else difference


def _named(loads: Collection[str | None]) -> str:
    return " and ".join(sorted(load or "the weights it started with" for load in loads)) or "none"
