"""Training state comes back whole, without extra memory, and with the recipe's hyper-parameters."""

from __future__ import annotations

import gc
import json
from contextlib import suppress

import pytest
import torch

from tests.support.tiny_trainer import TenSamples
from torchrl_ckpt.config.trainer import OptimizerConfig, SchedulerConfig
from torchrl_ckpt.trainer.distributed import World, seed_everything
from torchrl_ckpt.trainer.optimizer import build_optimizer, build_scheduler
from torchrl_ckpt.trainer.sft_source import SftSource
from torchrl_ckpt.trainer.state import Progress, TrainingState, rng_state, set_rng_state

Saved = tuple[dict[str, torch.Tensor], str, str]


def make_state(world: World, model: torch.nn.Module | None = None, **optim: float) -> TrainingState:
    model = model or torch.nn.Linear(64, 64)
    optimizer = build_optimizer(model, OptimizerConfig(**optim))
    scheduler = build_scheduler(optimizer, SchedulerConfig(warmup_steps=4), max_steps=9)
    source = SftSource(TenSamples(), batch_size=4, num_workers=0, seed=5, world=world)
    return TrainingState(model, optimizer, scheduler, source, Progress())


def train(state: TrainingState, steps: int) -> list[list[int]]:
    """Train some steps; return the first tokens of the samples of each."""
    seen = []
    for _ in range(steps):
        seen.append([sample.token_ids[0] for sample in state.source.batch(0).samples])
        inputs = torch.randn(len(seen[-1]), 64) + torch.tensor(seen[-1])[:, None]
        state.model(inputs).square().mean().backward()
        state.optimizer.step()
        state.scheduler.step()
        state.optimizer.zero_grad()
        state.progress.step += 1
    return seen


def save(state: TrainingState) -> Saved:
    tensors = {name: tensor.clone() for name, tensor in state.tensors().items()}
    return tensors, json.dumps(state.snapshot()[1]), json.dumps(rng_state())


def restore(state: TrainingState, saved: Saved) -> None:
    tensors = state.tensors()
    for name, tensor in tensors.items():
        tensor.copy_(saved[0][name])
    state.restore(tensors, json.loads(saved[1]))
    set_rng_state(json.loads(saved[2]))


class LateParameter(torch.nn.Linear):
    """Has a parameter that takes part only once the test says so."""

    def __init__(self) -> None:
        super().__init__(64, 64)
        self.late = torch.nn.Parameter(torch.ones(64))
        self.takes_part = False

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        outputs = super().forward(inputs)
        return outputs * self.late if self.takes_part else outputs


def test_a_parameter_without_gradients_is_saved_and_resumed_to_the_bit(world: World) -> None:
    def run(*, prepared: bool, resumed: bool) -> dict[str, torch.Tensor]:
        seed_everything(1, 0)
        model = LateParameter()
        state = make_state(world, model)
        template = state.template() if prepared else {}
        train(state, 3)
        if resumed:
            assert template.keys() == state.tensors().keys()
            saved = save(state)
            model = LateParameter()
            state = make_state(world, model)
            restore(state, saved)
        model.takes_part = True
        train(state, 2)
        return state.tensors()

    expected = run(prepared=False, resumed=False)
    for found in (run(prepared=True, resumed=False), run(prepared=True, resumed=True)):
        assert {name for name in expected if not torch.equal(expected[name], found[name])} == set()


@pytest.mark.parametrize("done", [0, 1, 5])
def test_a_restored_state_goes_on_to_the_bit(world: World, done: int) -> None:
    seed_everything(1, 0)
    whole = make_state(world)
    train(whole, done)
    saved = save(whole)
    expected = train(whole, 4)

    seed_everything(2, 0)
    resumed = make_state(world)
    restore(resumed, saved)
    assert train(resumed, 4) == expected
    for name, tensor in whole.tensors().items():
        assert torch.equal(resumed.tensors()[name], tensor), name
    assert resumed.snapshot()[1] == whole.snapshot()[1]


def test_a_restore_leaves_no_second_copy_behind(world: World) -> None:
    whole = make_state(world)
    train(whole, 2)
    saved = save(whole)
    resumed = make_state(world)
    train(resumed, 1)
    before = live_bytes()
    restore(resumed, saved)
    assert live_bytes() <= before


def live_bytes() -> int:
    """Bytes of all CPU tensors of this process."""
    gc.collect()
    sizes = {}
    for item in gc.get_objects():
        if issubclass(type(item), torch.Tensor) and item.device.type == "cpu":
            with suppress(RuntimeError):  # Fake tensors of other tests have no memory.
                storage = item.untyped_storage()
                sizes[storage.data_ptr()] = storage.nbytes()
    return sum(sizes.values())


def test_a_new_learning_rate_counts_and_an_unchanged_one_is_the_same_to_the_bit(
    world: World,
) -> None:
    whole = make_state(world, lr=0.3)
    train(whole, 3)
    saved = save(whole)
    for lr in (0.3, 0.6):
        resumed = make_state(world, lr=lr)
        restore(resumed, saved)
        expected = whole.optimizer.param_groups[0]["lr"] * (lr / 0.3)
        assert resumed.optimizer.param_groups[0]["lr"] == expected


def test_the_rng_state_survives_json() -> None:
    seed_everything(3, 1)
    torch.rand(5)
    saved = json.dumps(rng_state())
    expected = torch.rand(3).tolist()
    seed_everything(9, 9)
    set_rng_state(json.loads(saved))
    assert torch.rand(3).tolist() == expected


def test_buffers_that_a_forward_pass_changes_are_known(world: World) -> None:
    def changes(*layers: torch.nn.Module) -> bool:
        return make_state(world, torch.nn.Sequential(*layers)).changes_in_forward

    assert not changes(torch.nn.Linear(2, 2), torch.nn.LayerNorm(2))
    assert changes(torch.nn.Linear(2, 2), torch.nn.BatchNorm1d(2))
