"""A training step is one update by the gradient of the whole batch, however it is split up."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torchrl_ckpt_losses.cross_entropy import CrossEntropy

from torchrl_ckpt.config.trainer import PackingConfig, SchedulerConfig
from torchrl_ckpt.trainer.distributed import World
from torchrl_ckpt.trainer.optimizer import build_scheduler
from torchrl_ckpt.trainer.packing import TrainSample
from torchrl_ckpt.trainer.source import TrainBatch
from torchrl_ckpt.trainer.train_step import TrainStep, TrainStepResult
from torchrl_ckpt.trainer.update_check import UpdateLimits

VOCABULARY = 11


class BigramModel(torch.nn.Module):
    """Logits of the next token from the current one; position and document do not matter."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.table = torch.nn.Embedding(VOCABULARY, VOCABULARY)

    def forward(self, input_ids: torch.Tensor, position_ids: torch.Tensor) -> torch.Tensor:
        return self.table(input_ids)


SAMPLES = [
    TrainSample([1, 2, 3], [False, True, True]),
    TrainSample([4, 5], [False, True]),
    TrainSample([6, 7, 8, 9], [False, False, True, True]),
    TrainSample([3, 3, 1], [False, True, False]),
    TrainSample([2, 10], [False, True]),
]
NUM_LEARNED = 7


def step_once(
    world: World,
    *,
    length: int = 4,
    rows: int = 8,
    max_norm: float | None = None,
    temperature: float = 1.0,
    samples: list[TrainSample] = SAMPLES,
    sharded: bool = False,
    before_change: Callable[[BigramModel], object] = lambda model: None,
) -> tuple[BigramModel, TrainStepResult]:
    """One step of plain gradient descent with learning rate 1."""
    model = BigramModel()
    if sharded:
        fully_shard(model, mesh=world.mesh)
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    scheduler = build_scheduler(optimizer, SchedulerConfig(), max_steps=9)
    packing = PackingConfig(length=length, rows=rows)
    limits = UpdateLimits(max_norm=max_norm)
    train_step = TrainStep(model, CrossEntropy(), optimizer, scheduler, packing, limits, world)
    batch = TrainBatch(samples, temperature=temperature)
    return model, train_step(1, batch, before_change=lambda: before_change(model))


def expected_loss(model: BigramModel, temperature: float = 1.0) -> torch.Tensor:
    """The mean over all targets, computed sample by sample."""
    losses = [
        -(model.table.weight[before] / temperature).log_softmax(-1)[after]
        for sample in SAMPLES
        for before, after, learned in zip(
            sample.token_ids, sample.token_ids[1:], sample.learned[1:], strict=False
        )
        if learned
    ]
    assert len(losses) == NUM_LEARNED
    return torch.stack(losses).mean()


@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_the_update_is_the_gradient_of_the_mean_over_all_targets(
    world: World, temperature: float
) -> None:
    reference = BigramModel()
    loss = expected_loss(reference, temperature)
    loss.backward()
    assert reference.table.weight.grad is not None
    model, result = step_once(world, temperature=temperature)
    assert result.loss == pytest.approx(loss.item(), rel=1e-6)
    assert result.grad_norm == pytest.approx(reference.table.weight.grad.norm().item(), rel=1e-5)
    updated = reference.table.weight - reference.table.weight.grad
    torch.testing.assert_close(model.table.weight, updated)


@pytest.mark.parametrize("sharded", [False, True])
@pytest.mark.parametrize(("length", "rows"), [(4, 1), (4, 2), (14, 1), (5, 3)])
def test_accumulation_over_micro_batches_equals_one_big_batch(
    world: World, length: int, rows: int, sharded: bool
) -> None:
    whole, expected = step_once(world)
    split, found = step_once(world, length=length, rows=rows, sharded=sharded)
    weight = split.table.weight
    torch.testing.assert_close(
        weight.full_tensor() if isinstance(weight, DTensor) else weight, whole.table.weight.data
    )
    assert found.loss == pytest.approx(expected.loss, rel=1e-6)
    assert found.metrics == pytest.approx(expected.metrics)
    assert (found.samples, found.tokens, found.learned) == (5, 14, NUM_LEARNED)


def test_gradients_are_clipped_to_the_norm_and_reported_unclipped(world: World) -> None:
    before = BigramModel().table.weight
    _, unclipped = step_once(world)
    model, result = step_once(world, max_norm=0.01)
    assert result.grad_norm == pytest.approx(unclipped.grad_norm)
    assert result.grad_norm > 0.01
    assert (model.table.weight - before).norm().item() == pytest.approx(0.01, rel=1e-3)


def test_before_change_is_called_after_the_backward_pass_and_before_the_update(
    world: World,
) -> None:
    seen = []

    def look(model: BigramModel) -> None:
        unchanged = torch.equal(model.table.weight, BigramModel().table.weight)
        seen.append((unchanged, model.table.weight.grad is not None))

    model, _ = step_once(world, before_change=look)
    assert seen == [(True, True)]
    assert not torch.equal(model.table.weight, BigramModel().table.weight)


def test_a_step_without_targets_changes_nothing(world: World) -> None:
    nothing_learned = [TrainSample([1, 2], [False, False])]
    model, result = step_once(world, samples=nothing_learned)
    assert (result.loss, result.learned) == (0.0, 0)
    assert torch.equal(model.table.weight, BigramModel().table.weight)
