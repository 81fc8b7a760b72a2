"""Training state comes back whole, at no cost in memory, and the recipe's word counts."""

from __future__ import annotations

import gc
import json
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from torchrl_ckpt.config.trainer import OptimizerConfig, SchedulerConfig
from torchrl_ckpt.shuffled_stream import ShuffledStream
from torchrl_ckpt.trainer.distributed import World, join_world, seed_everything
from torchrl_ckpt.trainer.optimizer import build_optimizer, build_scheduler
from torchrl_ckpt.trainer.packing import TrainSample
from torchrl_ckpt.trainer.sft_source import SftSource
from torchrl_ckpt.trainer.state import Progress, TrainingState, rng_state, set_rng_state


@pytest.fixture(scope="module")
def world() -> Iterator[World]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    with pytest.MonkeyPatch.context() as env:
        for name, value in {
            "RANK": "0",
            "WORLD_SIZE": "1",
            "LOCAL_WORLD_SIZE": "1",
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
        }.items():
            env.setenv(name, value)
        threads = torch.get_num_threads()
        with join_world(threads=1, timeout=60) as joined:
            yield joined
        torch.set_num_threads(threads)


class Words:
    """Ten samples that can be told apart."""

    def __len__(self) -> int:
        return 10

    def __getitem__(self, index: int) -> TrainSample:
        return TrainSample([index, index], [True, True])


def source(world: World, batch_size: int = 4, num_workers: int = 0) -> SftSource:
    return SftSource(Words(), batch_size=batch_size, num_workers=num_workers, seed=5, world=world)


def state(world: World, model: torch.nn.Module | None = None, **optim: float) -> TrainingState:
    model = model or torch.nn.Linear(64, 64)
    optimizer = build_optimizer(model, OptimizerConfig(**optim))
    scheduler = build_scheduler(optimizer, SchedulerConfig(warmup_steps=4), max_steps=9)
    return TrainingState(model, optimizer, scheduler, source(world), Progress())


def train(state: TrainingState, steps: int) -> list[list[int]]:
    """Some steps on whatever the data says; returns which samples they were."""
    seen = []
    for _ in range(steps):
        batch = state._source.batch(0).samples
        seen.append([sample.token_ids[0] for sample in batch])
        inputs = torch.randn(len(batch), 64) + torch.tensor(seen[-1])[:, None]
        state.model(inputs).square().mean().backward()
        state._optimizer.step()
        state._scheduler.step()
        state._optimizer.zero_grad()
        state.progress.step += 1
    return seen


def saved(state: TrainingState) -> tuple[dict[str, torch.Tensor], str, str]:
    tensors = {name: tensor.clone() for name, tensor in state.tensors().items()}
    return tensors, json.dumps(state.snapshot()[1]), json.dumps(rng_state())


def restore(state: TrainingState, save: tuple[dict[str, torch.Tensor], str, str]) -> None:
    tensors = state.tensors()
    for name, tensor in tensors.items():
        tensor.copy_(save[0][name])
    state.restore(tensors, json.loads(save[1]))
    set_rng_state(json.loads(save[2]))


class LateParameter(torch.nn.Linear):
    """Has a parameter that takes part from a step on that the test chooses."""

    def __init__(self) -> None:
        super().__init__(64, 64)
        self.late = torch.nn.Parameter(torch.ones(64))
        self.takes_part = False

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        outputs = super().forward(inputs)
        return outputs * self.late if self.takes_part else outputs


def test_a_parameter_without_gradients_is_saved_too_and_goes_on_to_the_bit(world: World) -> None:
    def run(*, prepared: bool, resumed: bool) -> dict[str, torch.Tensor]:
        seed_everything(1, 0)
        model = LateParameter()
        now = state(world, model)
        form = now.form() if prepared else {}
        train(now, 3)
        if resumed:
            assert form.keys() == now.tensors().keys()
            save = saved(now)
            model = LateParameter()
            now = state(world, model)
            restore(now, save)
        model.takes_part = True
        train(now, 2)
        return now.tensors()

    expected = run(prepared=False, resumed=False)
    for found in (run(prepared=True, resumed=False), run(prepared=True, resumed=True)):
        assert {name for name in expected if not torch.equal(expected[name], found[name])} == set()


@pytest.mark.parametrize("done", [0, 1, 5])
def test_a_restored_state_goes_on_to_the_bit(world: World, done: int) -> None:
    seed_everything(1, 0)
    whole = state(world)
    train(whole, done)
    save = saved(whole)
    expected = train(whole, 4)

    seed_everything(2, 0)
    resumed = state(world)
    restore(resumed, save)
    assert train(resumed, 4) == expected
    for name, tensor in whole.tensors().items():
        assert torch.equal(resumed.tensors()[name], tensor), name
    assert resumed.snapshot()[1] == whole.snapshot()[1]
    assert rng_state() is not None


def test_a_restore_leaves_no_second_copy_behind(world: World) -> None:
    whole = state(world)
    train(whole, 2)
    save = saved(whole)
    resumed = state(world)
    train(resumed, 1)
    before = live_bytes()
    restore(resumed, save)
    assert live_bytes() <= before


def test_a_new_learning_rate_counts_and_an_old_one_is_the_same_to_the_bit(world: World) -> None:
    whole = state(world, lr=0.3)
    train(whole, 3)
    save = saved(whole)
    for lr in (0.3, 0.6):
        resumed = state(world, lr=lr)
        restore(resumed, save)
        rate = resumed._optimizer.param_groups[0]["lr"]
        assert rate == whole._optimizer.param_groups[0]["lr"] * (lr / 0.3)


@pytest.mark.parametrize(("before", "after"), [(0, 0), (0, 2), (2, 0), (2, 2), (2, 1)])
def test_samples_are_neither_skipped_nor_repeated_at_the_end_of_an_epoch(
    world: World, before: int, after: int
) -> None:
    order = ShuffledStream(10, seed=5).take(30)
    first = source(world, 5, num_workers=before)
    seen = [s.token_ids[0] for _ in range(2) for s in first.batch(0).samples]
    second = source(world, 5, num_workers=after)
    second.load_state_dict(json.loads(json.dumps(first.state_dict())))
    seen += [s.token_ids[0] for _ in range(4) for s in second.batch(0).samples]
    assert seen == order


def live_bytes() -> int:
    gc.collect()
    tensors = [item for item in gc.get_objects() if isinstance(item, torch.Tensor)]
    storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}
    return sum(storages.values())


def test_ranks_have_random_numbers_of_their_own() -> None:
    drawn = []
    for stream in range(3):
        seed_everything(7, stream)
        drawn.append(torch.rand(4).tolist())
    assert drawn[0] != drawn[1] != drawn[2]


def test_the_rng_state_survives_json(tmp_path: Path) -> None:
    seed_everything(3, 1)
    torch.rand(5)
    kept = json.dumps(rng_state())
    expected = torch.rand(3).tolist()
    seed_everything(9, 9)
    set_rng_state(json.loads(kept))
    assert torch.rand(3).tolist() == expected


def test_buffers_that_a_forward_pass_changes_are_known(world: World) -> None:
    def changes(*layers: torch.nn.Module) -> bool:
        return state(world, torch.nn.Sequential(*layers)).changes_in_forward

    assert not changes(torch.nn.Linear(2, 2), torch.nn.LayerNorm(2))
    assert changes(torch.nn.Linear(2, 2), torch.nn.BatchNorm1d(2))
