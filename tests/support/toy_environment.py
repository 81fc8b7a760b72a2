"""An environment whose problems and scores a test can compute by hand."""

from __future__ import annotations

from typing import Literal

from torchrl_ckpt.orchestrator.prompts import Prompts
from torchrl_ckpt.orchestrator.rollout_generator import RolloutGenerator
from torchrl_ckpt.orchestrator.server_pool import ServerPool
from torchrl_ckpt.plugin_api.checked_environment import CheckedEnvironment
from torchrl_ckpt.plugin_api.environments import Problem, Score, Split
from torchrl_ckpt.plugin_api.models import Tokenizer


class ToyEnvironment:
    """Every problem is to write "ba"; the reward is the share of letters "b".

    `completions` has every text that was scored.
    """

    plugin_api = 1

    def __init__(self, *, num_eval: int | None = 5) -> None:
        self.completions: list[str] = []
        self._num_eval = num_eval

    def size(self, split: Split) -> int | None:
        return 6 if split == "train" else self._num_eval

    def problem(self, split: Split, index: int) -> Problem:
        return Problem(id=f"{split} {index}", prompt="ab>", answer="ba")

    def score(self, problem: Problem, completion: str) -> Score:
        self.completions.append(completion)
        reward = completion.count("b") / len(completion) if completion else 0.0
        return Score(reward, {"exact": float(completion == problem.answer)})


def toy_generator(
    pool: ServerPool,
    environment: CheckedEnvironment,
    tokenizer: Tokenizer,
    *,
    prompts_per_request: int = 128,
    advantage: Literal["centred", "normalised"] = "centred",
) -> RolloutGenerator:
    """A generator for `environment` without limits of length."""
    prompts = Prompts(environment, tokenizer, {"train": None, "eval": None})
    return RolloutGenerator(
        pool,
        environment,
        tokenizer,
        prompts,
        prompts_per_request=prompts_per_request,
        advantage=advantage,
    )
