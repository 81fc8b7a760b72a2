"""Saves happen when they are due, at most one at a time, and their failures follow `on_failure`."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from torch.distributed import ProcessGroup
from torch.distributed.checkpoint.api import CheckpointException
from torchrl_ckpt_dcp.dcp_backend import DcpBackend, DcpConfig

from tests.support.tiny_trainer import TinyTrainer, tiny_trainer
from torchrl_ckpt.checkpoint.verify import verify
from torchrl_ckpt.config.ckpt import CheckpointConfig
from torchrl_ckpt.plugin_api.checkpoint_backends import Advance, Save, Written
from torchrl_ckpt.plugin_api.errors import CheckpointFailed
from torchrl_ckpt.trainer.checkpointer import Checkpointer
from torchrl_ckpt.trainer.distributed import World

OnFailure = Literal["continue", "stop"]


class HookedBackend(DcpBackend):
    """The backend `dcp` with a function called in each of its stages.

    With `in_background` it writes in `save` all the same, but is treated as a background backend.
    """

    def __init__(self, *, in_background: bool = False, **hooks: Callable[[], object]) -> None:
        super().__init__(DcpConfig())
        self.in_background = in_background
        self.hooks: dict[str, Callable[[], object]] = hooks

    def call(self, stage: str) -> None:
        self.hooks.get(stage, lambda: None)()

    def save(self, state: Mapping[str, torch.Tensor], directory: Path, group: ProcessGroup) -> Save:
        self.call("save")
        return HookedSave(self, super().save(state, directory, group))


class HookedSave:
    def __init__(self, backend: HookedBackend, save: Save) -> None:
        self._backend = backend
        self._save = save

    def wait_staged(self) -> None:
        self._backend.call("wait_staged")

    def wait_written(self, advance: Advance = lambda _: None) -> Written:
        self._backend.call("wait_written")
        return self._save.wait_written(advance)


def trainer_with(
    backend: HookedBackend, world: World, run: Path, **options: Any
) -> tuple[TinyTrainer, Checkpointer]:
    trainer = tiny_trainer(run, world, ckpt=CheckpointConfig(**options), backend=backend)
    assert isinstance(trainer.checkpointer, Checkpointer)
    trainer.checkpointer.prepare(trainer.state)
    return trainer, trainer.checkpointer


def checkpoint(trainer: TinyTrainer, step: int) -> bool:
    """Do what the loop does after `step`; whether a checkpoint was begun."""
    assert isinstance(trainer.checkpointer, Checkpointer)
    trainer.state.progress.step = step
    begun = trainer.checkpointer.request(step, last=False)
    trainer.checkpointer.save(step, trainer.state)
    return begun


def raising(error: BaseException) -> Callable[[], object]:
    def fail() -> None:
        raise error

    return fail


def test_a_step_that_is_not_due_is_neither_requested_nor_saved(
    world: World, tmp_path: Path
) -> None:
    trainer, checkpointer = trainer_with(HookedBackend(), world, tmp_path, interval=2)
    assert [checkpoint(trainer, step) for step in (1, 2, 3)] == [False, True, False]
    checkpointer.close()
    assert trainer.layout.steps() == [2]
    assert trainer.layout.leftovers() == []


@pytest.mark.parametrize(
    ("error", "message", "stage", "in_background"),
    [
        (OSError(28, "No space left on device"), "No space left on device", "save", False),
        (CheckpointFailed("the writer died"), "the writer died", "wait_written", True),
        (KeyError("a defect"), "KeyError: 'a defect'", "save", True),
        (KeyError("a defect"), "KeyError: 'a defect'", "wait_written", True),
        (RuntimeError("CUDA error"), "RuntimeError: CUDA error", "wait_written", False),
        (CheckpointException("of DCP", {}), "CheckpointException", "save", False),
    ],
)
def test_training_continues_after_a_failed_save_whatever_it_failed_of(
    world: World,
    tmp_path: Path,
    error: BaseException,
    message: str,
    stage: str,
    in_background: bool,
) -> None:
    backend = HookedBackend(in_background=in_background)
    trainer, checkpointer = trainer_with(backend, world, tmp_path, interval=1)
    checkpoint(trainer, 1)
    checkpointer.finish()
    backend.hooks[stage] = raising(error)
    checkpoint(trainer, 2)
    checkpointer.finish()
    backend.hooks.clear()
    checkpoint(trainer, 3)
    checkpointer.close()
    assert trainer.layout.steps() == [1, 3]
    assert trainer.layout.leftovers() == []
    warnings = [event.message for event in trainer.messages() if event.level == "warning"]
    assert len(warnings) == 1
    assert warnings[0].startswith("checkpoint of step 2 failed: ")
    assert message in warnings[0]
    for step in (1, 3):
        verify(trainer.layout.step(step))


@pytest.mark.parametrize("in_background", [False, True])
@pytest.mark.parametrize("error", [OSError("disk"), KeyError("a defect")])
def test_a_failed_save_stops_the_run_if_the_option_says_so(
    world: World, tmp_path: Path, in_background: bool, error: BaseException
) -> None:
    backend = HookedBackend(in_background=in_background)
    trainer, checkpointer = trainer_with(backend, world, tmp_path, interval=1, on_failure="stop")
    checkpoint(trainer, 1)
    checkpointer.finish()
    backend.hooks["wait_written"] = raising(error)

    def fail() -> None:
        checkpoint(trainer, 2)
        checkpointer.finish()

    with pytest.raises(CheckpointFailed, match=r"step 2 failed: .*`ckpt\.on_failure` is \"stop\""):
        fail()
    checkpointer.close()
    assert trainer.layout.steps() == [1]
    assert trainer.layout.leftovers() == []


def test_an_unexpected_error_is_logged_with_its_traceback(
    world: World, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    backend = HookedBackend(wait_written=raising(KeyError("a defect")))
    trainer, _ = trainer_with(backend, world, tmp_path, interval=1)
    with caplog.at_level(logging.ERROR):
        checkpoint(trainer, 1)
    assert "Traceback" in caplog.text
    assert "in wait_written" in caplog.text


def test_a_full_disk_is_found_before_the_first_byte(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda path: type("Usage", (), {"free": 1000})())
    backend = HookedBackend(save=raising(AssertionError("it must not come to this")))
    trainer, _ = trainer_with(backend, world, tmp_path, interval=1)
    assert checkpoint(trainer, 1) is False
    assert "free some space" in trainer.messages()[-1].message


def test_the_next_request_waits_for_the_save_in_progress(world: World, tmp_path: Path) -> None:
    release = threading.Event()
    backend = HookedBackend(in_background=True, wait_written=release.wait)
    trainer, checkpointer = trainer_with(backend, world, tmp_path, interval=1)
    checkpoint(trainer, 1)
    assert checkpointer.in_progress is not None
    assert trainer.layout.steps() == []
    threading.Timer(0.2, release.set).start()
    checkpoint(trainer, 2)
    assert trainer.layout.steps() == [1]
    checkpointer.close()
    assert trainer.layout.steps() == [1, 2]


def test_the_parameters_may_not_change_before_they_are_staged(world: World, tmp_path: Path) -> None:
    staged = threading.Event()
    backend = HookedBackend(in_background=True, wait_staged=staged.wait)
    trainer, checkpointer = trainer_with(backend, world, tmp_path, interval=1)
    checkpointer.maybe_wait_for_staging()  # There is no save: it returns at once.
    checkpoint(trainer, 1)
    threading.Timer(0.2, staged.set).start()
    checkpointer.maybe_wait_for_staging()
    assert staged.is_set()
    checkpointer.close()
    (row,) = trainer.rows("checkpoint")
    assert row["checkpoint/stall_seconds"] > 0.15


def test_an_error_in_training_lets_the_save_of_a_good_step_end(
    world: World, tmp_path: Path
) -> None:
    release = threading.Event()
    backend = HookedBackend(in_background=True, wait_written=release.wait)
    trainer, checkpointer = trainer_with(backend, world, tmp_path, interval=1)
    checkpoint(trainer, 1)
    threading.Timer(0.2, release.set).start()
    with pytest.raises(ZeroDivisionError), checkpointer:
        raise ZeroDivisionError
    assert trainer.layout.steps() == [1]


def test_a_rank_that_the_checkpoint_does_not_know_draws_other_random_numbers(
    world: World, tmp_path: Path
) -> None:
    trainer, checkpointer = trainer_with(HookedBackend(), world, tmp_path, interval=1)
    checkpoint(trainer, 1)
    checkpointer.close()

    def numbers_after_resume() -> list[float]:
        resumed = tiny_trainer(tmp_path, world, ckpt=CheckpointConfig(), resume_step=1)
        resumed.checkpointer.load(resumed.state)
        return torch.rand(3).tolist()

    known = numbers_after_resume()
    (trainer.layout.step(1) / "trainer/rng/rank_0.json").unlink()
    assert numbers_after_resume() != known
