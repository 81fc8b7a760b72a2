"""The training loop: the order within a step, its metrics, the last step, a requested stop."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch
from torch.distributed import ProcessGroup
from torchrl_ckpt_dcp.dcp_backend import DcpBackend, DcpConfig
from torchrl_ckpt_transformers.model import TransformersModel

from tests.support.tiny_model import tiny_model
from tests.support.tiny_trainer import MAX_STEPS, SMALLEST, TinyTrainer, tiny_trainer
from torchrl_ckpt.checkpoint.layout import REQUEST, Layout
from torchrl_ckpt.checkpoint.verify import verify
from torchrl_ckpt.config.ckpt import CheckpointConfig
from torchrl_ckpt.plugin_api.checkpoint_backends import Save
from torchrl_ckpt.run.metrics import values_by_step
from torchrl_ckpt.trainer.distributed import World


@dataclass
class Observer:
    """Notes what is on disk when the model is exported and when the backend saves."""

    run: Path
    events: list[str] = field(default_factory=list)

    def note(self, what: str, step: int) -> None:
        layout = Layout(self.run / "checkpoints")
        seen = {
            "requested": (layout.partial(step) / REQUEST).exists(),
            "row": step in values_by_step(self.run / "metrics.jsonl", "trainer", "loss"),
            "policy": (self.run / f"weights/step_{step}/policy.json").exists(),
            "committed": layout.step(step).exists(),
        }
        self.events.append(" ".join([what, str(step), *(name for name in seen if seen[name])]))


class ObservedModel(TransformersModel):
    def __init__(self, observer: Observer) -> None:
        super().__init__(tiny_model(**SMALLEST).config)
        self._observer = observer

    def export(self, state: Mapping[str, torch.Tensor], directory: Path) -> None:
        self._observer.note("export", int(directory.name.removeprefix(".step_").split(".")[0]))
        super().export(state, directory)


class ObservedBackend(DcpBackend):
    def __init__(self, observer: Observer) -> None:
        super().__init__(DcpConfig())
        self._observer = observer

    def save(self, state: Mapping[str, torch.Tensor], directory: Path, group: ProcessGroup) -> Save:
        self._observer.note("save", int(directory.parts[-3].removeprefix(".step_").split(".")[0]))
        return super().save(state, directory, group)


def parameters(trainer: TinyTrainer) -> dict[str, torch.Tensor]:
    tensors = trainer.state.tensors().items()
    return {name: getattr(tensor, "full_tensor", lambda t=tensor: t)() for name, tensor in tensors}


def test_a_step_writes_its_row_requests_publishes_and_then_saves(
    world: World, tmp_path: Path
) -> None:
    observer = Observer(tmp_path)
    backend, plugin = ObservedBackend(observer), ObservedModel(observer)
    tiny_trainer(
        tmp_path, world, ckpt=CheckpointConfig(interval=2), backend=backend, plugin=plugin
    ).run(publish_policies=True)
    assert observer.events == [
        "export 0",
        "export 1 row",
        "export 2 requested row",
        "save 2 requested row policy",
        "export 3 row",
        "export 4 requested row",
        "save 4 requested row policy",
    ]
    assert Layout(tmp_path / "checkpoints").steps() == [2, 4]


def test_every_policy_is_published_and_only_the_last_one_is_marked(
    world: World, tmp_path: Path
) -> None:
    trainer = tiny_trainer(tmp_path, world)
    trainer.run(publish_policies=True)
    policies = [
        trainer.weights().read(step, attempt_id=trainer.attempt.id) for step in range(MAX_STEPS + 1)
    ]
    assert [policy is not None and policy.last for policy in policies] == [False] * 4 + [True]


def test_a_row_has_the_numbers_of_its_step(world: World, tmp_path: Path) -> None:
    trainer = tiny_trainer(tmp_path, world)
    trainer.run()
    rows = trainer.rows()
    assert [row["step"] for row in rows] == [1, 2, 3, 4]
    assert {
        "loss",
        "grad_norm",
        "lr",
        "token_accuracy",
        "tokens_per_second",
        "wait_seconds",
        "update_seconds",
    } <= rows[0].keys()
    # Four samples of four tokens, three of which are targets.
    assert [(row["samples"], row["tokens"], row["learned"]) for row in rows] == [(4, 16, 12)] * 4
    assert rows[-1]["loss"] < rows[0]["loss"]
    assert trainer.state.progress.samples == 16


def test_the_last_step_is_saved_without_an_interval(world: World, tmp_path: Path) -> None:
    trainer = tiny_trainer(tmp_path, world, ckpt=CheckpointConfig())
    trainer.run()
    assert trainer.layout.steps() == [MAX_STEPS]
    verify(trainer.layout.step(MAX_STEPS))


@pytest.mark.parametrize("export_weights", [True, False])
def test_only_the_final_model_is_exported_and_only_if_wanted(
    world: World, tmp_path: Path, export_weights: bool
) -> None:
    trainer = tiny_trainer(tmp_path, world)
    trainer.run(export_weights=export_weights)
    exported = sorted(path.name for path in tmp_path.glob("weights/*"))
    assert exported == (["step_4"] if export_weights else [])
    assert trainer.weights().read(MAX_STEPS, attempt_id=trainer.attempt.id) is None


def test_a_requested_stop_ends_training_with_a_checkpoint_and_a_last_policy(
    world: World, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    trainer = tiny_trainer(tmp_path, world, ckpt=CheckpointConfig())
    with caplog.at_level(logging.WARNING):
        trainer.run(publish_policies=True, stop_requested=lambda: trainer.state.progress.step == 2)
    assert "stopped after step 2 of 4" in caplog.text
    assert trainer.layout.steps() == [2]
    policy = trainer.weights().last(attempt_id=trainer.attempt.id)
    assert policy is not None
    assert policy.version == 2


def test_a_stopped_run_exports_no_final_model(world: World, tmp_path: Path) -> None:
    tiny_trainer(tmp_path, world).run(stop_requested=lambda: True)
    assert not (tmp_path / "weights").exists()


@pytest.mark.parametrize("backend", ["dcp", "async_dcp"])
def test_a_resumed_run_ends_with_the_same_state_to_the_bit(
    world: World, tmp_path: Path, backend: str
) -> None:
    ckpt = CheckpointConfig(interval=2, save_async=backend == "async_dcp")
    whole = tiny_trainer(tmp_path / "run", world, ckpt=ckpt)
    whole.run()
    resumed = tiny_trainer(tmp_path / "run", world, ckpt=ckpt, resume_step=2)
    resumed.run()
    expected, found = parameters(whole), parameters(resumed)
    assert {name for name in expected if not torch.equal(expected[name], found[name])} == set()
    assert resumed.state.snapshot()[1] == whole.state.snapshot()[1]
    assert [row["loss"] for row in resumed.rows()][4:] == [row["loss"] for row in whole.rows()][2:4]
