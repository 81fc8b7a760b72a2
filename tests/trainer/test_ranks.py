"""Two ranks train as one does, wait for each other as long as options say, and fail together."""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import pytest
import torch.multiprocessing as mp

from tests.support.tiny_trainer import MAX_STEPS, TenSamples, TinyTrainer, tiny_trainer
from torchrl_ckpt.checkpoint.layout import TRAINER
from torchrl_ckpt.checkpoint.part import finish_part, open_part
from torchrl_ckpt.checkpoint.verify import verify
from torchrl_ckpt.config.ckpt import CheckpointConfig
from torchrl_ckpt.config.section import PluginTable
from torchrl_ckpt.config.trainer import TrainerConfig
from torchrl_ckpt.plugin_api.errors import CheckpointFailed
from torchrl_ckpt.trainer.checkpointer import Checkpointer
from torchrl_ckpt.trainer.distributed import (
    RENDEZVOUS_VARIABLE,
    CollectiveLimits,
    World,
    collective_limits,
    join_world,
)
from torchrl_ckpt.trainer.source import TrainBatch

OnFailure = Literal["continue", "stop"]

COLLECTIVE_SECONDS = 1.0
LATE_SECONDS = 2.0  # Longer than a collective may take, if nothing else is waited for.
PART_SECONDS = 30.0
OTHER = "orchestrator"

NEVER = 1e6


@pytest.fixture(scope="module", name="ranks")
def run_two_ranks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Run every scenario on two ranks, once. The results are in `SCENARIO/rank_N.json`."""
    root = tmp_path_factory.mktemp("ranks")
    mp.spawn(run_scenarios, (root,), nprocs=2)
    return root


def results(root: Path, scenario: str) -> list[dict[str, Any]]:
    """What the scenario's two ranks have found."""
    paths = [root / scenario / f"rank_{rank}.json" for rank in range(2)]
    return [json.loads(path.read_text()) for path in paths]


def run_scenarios(rank: int, root: Path) -> None:
    for name, scenario in SCENARIOS.items():
        directory = root / name
        directory.mkdir(exist_ok=True)
        os.environ |= {
            "RANK": str(rank),
            "WORLD_SIZE": "2",
            RENDEZVOUS_VARIABLE: str(directory / "rendezvous"),
        }
        result = scenario(directory)
        (directory / f"rank_{rank}.json").write_text(json.dumps(result))
    os._exit(0)  # See `tests.support.ranks`.


@contextmanager
def two_ranks(checkpoint_seconds: float = 60.0) -> Iterator[World]:
    limits = CollectiveLimits(training_seconds=60.0, checkpoint_seconds=checkpoint_seconds)
    with join_world(threads=1, limits=limits) as world:
        yield world


def derived_limit(ckpt: CheckpointConfig) -> float:
    config = TrainerConfig(
        output_dir=Path("run"),
        model=PluginTable(type="none"),
        collective_timeout=COLLECTIVE_SECONDS,
    )
    return collective_limits(config, ckpt).checkpoint_seconds


def train_on_two_ranks(directory: Path) -> dict[str, Any]:
    with two_ranks() as world:
        return train(directory / "run", world)


def train(run: Path, world: World) -> dict[str, Any]:
    """Train, then do a step in which only rank 0 has samples."""
    trainer = tiny_trainer(run, world)
    trainer.run()
    samples = [TenSamples()[index] for index in range(5)] if world.is_rank_zero else []
    result = trainer.train_step(1, TrainBatch(samples))
    return {
        "losses": [row["loss"] for row in trainer.rows()],
        "grad_norms": [row["grad_norm"] for row in trainer.rows()],
        "uneven": [result.loss, result.grad_norm, result.metrics["token_accuracy"]],
        "counts": [result.samples, result.tokens, result.learned],
    }


def save_with_a_late_part(directory: Path) -> dict[str, Any]:
    """The other process's part comes later than a collective may take otherwise."""
    ckpt = CheckpointConfig(timeout=PART_SECONDS)
    with two_ranks(derived_limit(ckpt)) as world:
        trainer = tiny_trainer(directory / "run", world, ckpt=ckpt, parts=(TRAINER, OTHER))
        return save(trainer, 1, part_after=LATE_SECONDS)


def save_without_the_part(directory: Path, on_failure: OnFailure) -> dict[str, Any]:
    """The other process's part never comes; if the run goes on, that of the next step does."""
    ckpt = CheckpointConfig(timeout=LATE_SECONDS, on_failure=on_failure)
    with two_ranks(derived_limit(ckpt)) as world:
        trainer = tiny_trainer(directory / "run", world, ckpt=ckpt, parts=(TRAINER, OTHER))
        result = save(trainer, 1, part_after=NEVER)
        return save(trainer, 2, part_after=0) if result["error"] is None else result


def save_without_a_rank(directory: Path) -> dict[str, Any]:
    """Rank 1 hangs when rank 0 saves."""
    with two_ranks(COLLECTIVE_SECONDS) as world:
        trainer = tiny_trainer(directory / "run", world, ckpt=CheckpointConfig())
        if not world.is_rank_zero:
            while not (directory / "rank_0.json").exists():
                time.sleep(0.05)
            return {}
        result = save(trainer, 1, part_after=0)
        (directory / "rank_0.json").write_text(json.dumps(result))
        return result


SCENARIOS = {
    "training": train_on_two_ranks,
    "late part": save_with_a_late_part,
    "no part, continue": lambda directory: save_without_the_part(directory, "continue"),
    "no part, stop": lambda directory: save_without_the_part(directory, "stop"),
    "no rank": save_without_a_rank,
}


def save(trainer: TinyTrainer, step: int, *, part_after: float) -> dict[str, Any]:
    """Save `step`; the other process writes its part `part_after` seconds after the request.

    Returns the error that ends the run, if any.
    """
    checkpointer = trainer.checkpointer
    assert isinstance(checkpointer, Checkpointer)
    trainer.state.progress.step = step
    try:
        if checkpointer.request(step, last=True) and trainer.world.is_rank_zero:
            write = threading.Timer(part_after, write_other_part, [trainer, step])
            write.daemon = True
            write.start()
        checkpointer.save(step, trainer.state)
    except CheckpointFailed as error:
        return {"error": str(error)}
    return {"error": None}


def write_other_part(trainer: TinyTrainer, step: int) -> None:
    finish_part(open_part(trainer.layout.partial(step), OTHER), [])


def committed(root: Path, scenario: str) -> list[int]:
    """The committed steps, verified."""
    paths = (root / scenario / "run/checkpoints").glob("step_*")
    return sorted(verify(path).step for path in paths)


def test_two_ranks_train_as_one_does_up_to_rounding(
    ranks: Path, world: World, tmp_path: Path
) -> None:
    alone = train(tmp_path, world)
    first, second = results(ranks, "training")
    assert len(first["losses"]) == MAX_STEPS
    for name, expected in alone.items():
        assert first[name] == pytest.approx(expected, rel=1e-4), name
    assert second["uneven"] == first["uneven"]
    assert first["counts"] == [5, 20, 15]


def test_a_part_that_comes_within_its_limit_is_waited_for_by_all_ranks(ranks: Path) -> None:
    assert results(ranks, "late part") == [{"error": None}] * 2
    assert committed(ranks, "late part") == [1]


def test_a_part_that_never_comes_fails_the_save_and_training_goes_on(ranks: Path) -> None:
    assert results(ranks, "no part, continue") == [{"error": None}] * 2
    assert committed(ranks, "no part, continue") == [2]


def test_a_part_that_never_comes_stops_all_ranks_if_the_option_says_so(ranks: Path) -> None:
    for result in results(ranks, "no part, stop"):
        assert "waited 2 s for the orchestrator's part" in result["error"]
        assert '`ckpt.on_failure` is "stop"' in result["error"]
    assert committed(ranks, "no part, stop") == []


def test_ranks_that_lose_each_other_end_the_run_although_it_may_continue(ranks: Path) -> None:
    result = results(ranks, "no rank")[0]
    assert "the trainer's ranks lost each other" in result["error"]
    assert "`collective_timeout`" in result["error"]
