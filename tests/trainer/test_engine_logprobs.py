"""A step whose tokens the engine drew with other log-probabilities than the policy's is refused."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torchrl_ckpt_losses.grpo import Grpo, GrpoConfig

from tests.trainer.test_train_step import BigramModel
from torchrl_ckpt.config.trainer import PackingConfig, SchedulerConfig
from torchrl_ckpt.plugin_api.errors import WrongPolicy
from torchrl_ckpt.trainer.distributed import World
from torchrl_ckpt.trainer.optimizer import build_scheduler
from torchrl_ckpt.trainer.packing import TrainSample
from torchrl_ckpt.trainer.source import DrawnBy, TrainBatch
from torchrl_ckpt.trainer.train_step import TrainStep
from torchrl_ckpt.trainer.update_check import UpdateLimits

TOKENS = [[1, 2, 3], [4, 5, 6, 7, 8], [9, 3, 3, 1]]


def sample(model: BigramModel, tokens: list[int], errors: dict[int, float]) -> TrainSample:
    """A rollout as an engine reports it; `errors` (nats) are added at some of its tokens."""
    logprobs = model.table.weight.detach().log_softmax(-1)
    drawn = [
        logprobs[before, after].item() + errors.get(position, 0.0)
        for position, (before, after) in enumerate(itertools.pairwise(tokens), start=1)
    ]
    learned = [False, *[True] * len(drawn)]
    return TrainSample(tokens, learned, 1.0, [0.0, *drawn], name=f"problem {tokens[0]}")


def train(
    world: World,
    drawn_by: DrawnBy | None,
    errors: dict[int, float],
    *,
    tolerance: float | None = None,
) -> BigramModel:
    """Take a step in which the engine was wrong in the second sample; return the model."""
    model = BigramModel()
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    step = TrainStep(
        model,
        Grpo(GrpoConfig()),
        optimizer,
        build_scheduler(optimizer, SchedulerConfig(), max_steps=9),
        PackingConfig(length=8, rows=1),
        UpdateLimits(logprob_tolerance=tolerance),
        world,
    )
    samples = [
        sample(model, tokens, errors if number == 1 else {}) for number, tokens in enumerate(TOKENS)
    ]
    trained.append(model)
    step(5, TrainBatch(samples, drawn_by=drawn_by))
    return model


trained: list[BigramModel] = []

EXACT = DrawnBy("float32", truncation=0.0)


@pytest.mark.parametrize("error", [0.3, -0.3, 0.002, math.nan])
def test_a_wrong_decoding_is_caught_before_the_update(world: World, error: float) -> None:
    with pytest.raises(Exception, match="step 5") as caught:
        train(world, EXACT, {3: error})
    assert torch.equal(trained[-1].table.weight, BigramModel().table.weight)
    if math.isnan(error):
        return
    assert isinstance(caught.value, WrongPolicy)
    message = str(caught.value)
    assert "token 4 of 5 (id 7) of problem 4: the engine's log-probability is " in message
    expected = BigramModel().table.weight.log_softmax(-1)[6, 7].item()
    assert f"{expected + error:.6f}, the trainer's {expected:.6f}" in message
    assert "`logprob_tolerance` of the trainer" in message


@pytest.mark.parametrize(
    ("drawn_by", "error", "tolerance"),
    [
        (EXACT, 0.0, None),
        (EXACT, 0.0001, None),  # one token of nine: rounding
        (None, 3.0, None),  # Another policy drew the tokens.
        (DrawnBy("bfloat16", 0.0), 0.3, None),  # 0.033 on average
        (DrawnBy("float32", -math.log(0.5)), 0.6, None),  # explained by top_p = 0.5
        (DrawnBy("float32", math.inf), 3.0, None),  # explained by top_k
        (EXACT, 0.3, 0.1),
    ],
)
def test_what_the_numbers_explain_is_trained_on(
    world: World, drawn_by: DrawnBy | None, error: float, tolerance: float | None
) -> None:
    model = train(world, drawn_by, {3: error}, tolerance=tolerance)
    assert not torch.equal(model.table.weight, BigramModel().table.weight)


@pytest.mark.parametrize(
    ("drawn_by", "error"),
    [
        (DrawnBy("bfloat16", 0.0), 2.0),
        (DrawnBy("float32", -math.log(0.5)), 0.8),
        # Truncation only ever raises probabilities.
        (DrawnBy("float32", math.inf), -0.3),
        (DrawnBy(None, 0.0), 0.3),
    ],
)
def test_what_they_do_not_explain_is_not(world: World, drawn_by: DrawnBy, error: float) -> None:
    with pytest.raises(WrongPolicy, match="problem 4"):
        train(world, drawn_by, {3: error})
