"""Scores completions, and sums scores up."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from torchrl_ckpt.plugin_api.engines import Sample
from torchrl_ckpt.plugin_api.environments import Environment, Problem, Score
from torchrl_ckpt.plugin_api.models import Tokenizer


@dataclass(frozen=True)
class Scored:
    """A completion of a problem with its score. `load` names the weights that drew it."""

    problem: Problem
    prompt: list[int]
    sample: Sample
    load: str
    score: Score


def score(
    environment: Environment,
    tokenizer: Tokenizer,
    problem: Problem,
    prompt: list[int],
    sample: Sample,
    load: str,
) -> Scored:
    """Score what the tokens say, without the end token."""
    tokens = list(sample.token_ids)
    if tokens and tokens[-1] == tokenizer.eos_token_id:
        tokens.pop()
    text = tokenizer.decode(tokens, skip_special_tokens=False)
    return Scored(problem, prompt, sample, load, environment.score(problem, text))


def summary(groups: Sequence[Sequence[Scored]]) -> dict[str, float]:
    """Means over all completions of the reward and the environment's metrics."""
    scored = [one for group in groups for one in group]
    rewards = [one.score.reward for one in scored]
    row = {
        "reward/mean": statistics.fmean(rewards),
        "reward/std": statistics.pstdev(rewards),
        "completion_tokens/mean": statistics.fmean(len(one.sample.token_ids) for one in scored),
        "truncated/mean": statistics.fmean(one.sample.finish_reason == "length" for one in scored),
    }
    for name in sorted(scored[0].score.metrics):
        row[f"{name}/mean"] = statistics.fmean(one.score.metrics[name] for one in scored)
    return row
