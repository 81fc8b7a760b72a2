"""Numbers that are not finite change no parameter and replace no checkpoint."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torchrl_ckpt_losses.cross_entropy import CrossEntropy

from tests.support.tiny_trainer import TinyTrainer, tiny_trainer
from torchrl_ckpt.config.ckpt import CheckpointConfig
from torchrl_ckpt.plugin_api.errors import NotFinite
from torchrl_ckpt.plugin_api.losses import LossInputs, LossOutput
from torchrl_ckpt.trainer.distributed import World
from torchrl_ckpt.trainer.finite_save import first_nonfinite
from torchrl_ckpt.trainer.update_check import UpdateLimits

# A step has four samples of four tokens in rows of eight, two rows a pass: one pass.
FAULTY_STEP = 3


class FaultyLoss:
    """Cross entropy, whose value or gradient is not finite in `steps`."""

    plugin_api = 1
    requires: frozenset[str] = frozenset()

    def __init__(self, *steps: int, in_gradient: bool = False) -> None:
        self._loss = CrossEntropy()
        self._steps = steps
        self._in_gradient = in_gradient
        self._calls = 0

    def __call__(self, inputs: LossInputs) -> LossOutput:
        self._calls += 1
        output = self._loss(inputs)
        if self._calls not in self._steps:
            return output
        if self._in_gradient:
            # The square root of 0, whose derivative is infinite; times 0 that is NaN.
            zero = (inputs.logits * 0).sum()
            return replace(output, loss=output.loss + zero.sqrt() * 0)
        return replace(output, loss=output.loss * float("nan"))


def parameters(trainer: TinyTrainer) -> list[torch.Tensor]:
    return [parameter.detach().clone() for parameter in trainer.state.model.parameters()]


@pytest.mark.parametrize("max_norm", [1.0, None])
@pytest.mark.parametrize("in_gradient", [False, True])
def test_the_run_ends_before_the_update_and_the_last_good_checkpoint_stays(
    world: World, tmp_path: Path, in_gradient: bool, max_norm: float | None
) -> None:
    trainer = tiny_trainer(
        tmp_path,
        world,
        ckpt=CheckpointConfig(interval=1, keep=1),
        loss=FaultyLoss(FAULTY_STEP, in_gradient=in_gradient),
        limits=UpdateLimits(max_norm=max_norm),
    )
    with pytest.raises(NotFinite) as caught:
        trainer.run()
    message = str(caught.value)
    assert f"step {FAULTY_STEP} has numbers that are not finite" in message
    if in_gradient:
        assert "the gradient of " in message
    else:
        assert "the loss of micro-batch 1 of 1 is nan (its samples: " in message
    assert "`on_nonfinite` of the trainer" in message
    assert trainer.layout.steps() == [FAULTY_STEP - 1]
    assert first_nonfinite(trainer.state.tensors()) is None
    assert [row["step"] for row in trainer.rows()] == [1, 2]


def test_a_skipped_update_changes_no_parameter_and_shows_in_the_metrics(
    world: World, tmp_path: Path
) -> None:
    seen: dict[int, list[torch.Tensor]] = {}
    trainer = tiny_trainer(
        tmp_path,
        world,
        ckpt=CheckpointConfig(interval=1),
        loss=FaultyLoss(FAULTY_STEP),
        limits=UpdateLimits(max_norm=1.0, on_nonfinite="skip"),
    )

    def look() -> bool:
        seen[trainer.state.progress.step] = parameters(trainer)
        return False

    trainer.run(stop_requested=look)
    assert all(map(torch.equal, seen[2], seen[3]))
    assert [row.get("skipped_update") for row in trainer.rows()] == [None, None, 1, None]
    assert trainer.rows()[2]["loss"] == "nan"
    assert trainer.layout.steps() == [1, 2, 3, 4]
    (warning,) = [event for event in trainer.messages() if event.level == "warning"]
    assert warning.message.startswith("step 3 has numbers that are not finite")


def test_a_run_resumed_behind_a_skipped_update_ends_with_the_same_bits(
    world: World, tmp_path: Path
) -> None:
    options = {
        "ckpt": CheckpointConfig(interval=3),
        "limits": UpdateLimits(max_norm=1.0, on_nonfinite="skip"),
    }
    whole = tiny_trainer(tmp_path, world, loss=FaultyLoss(3), **options)  # type: ignore[arg-type]
    whole.run()
    resumed = tiny_trainer(tmp_path, world, resume_step=3, **options)  # type: ignore[arg-type]
    resumed.run()
    assert all(map(torch.equal, parameters(whole), parameters(resumed)))
    assert resumed.state.snapshot()[1] == whole.state.snapshot()[1]


def test_a_model_whose_updates_are_all_skipped_does_not_train_on(
    world: World, tmp_path: Path
) -> None:
    trainer = tiny_trainer(
        tmp_path,
        world,
        loss=FaultyLoss(*range(1, 99)),
        limits=UpdateLimits(on_nonfinite="skip"),
        max_steps=20,
    )
    with pytest.raises(NotFinite, match="10 updates in a row were skipped"):
        trainer.run()
    assert trainer.state.progress.step == 9


@pytest.mark.parametrize("backend", ["dcp", "async_dcp"])
@pytest.mark.parametrize("damage", ["model", "optim"])
def test_a_state_with_nan_is_not_committed_over_a_good_one(
    world: World, tmp_path: Path, backend: str, damage: str
) -> None:
    ckpt = CheckpointConfig(interval=1, keep=1, save_async=backend == "async_dcp")
    trainer = tiny_trainer(tmp_path, world, ckpt=ckpt)

    def spoil() -> bool:
        if trainer.state.progress.step == FAULTY_STEP - 1:
            name, tensor = next(
                (name, tensor)
                for name, tensor in trainer.state.tensors().items()
                if name.startswith(damage) and tensor.numel() > 1
            )
            spoiled.append(name)
            tensor.to_local().view(-1)[-1] = float("inf") if damage == "optim" else float("nan")  # type: ignore[attr-defined]
        return False

    spoiled: list[str] = []
    # The last row of the first table: a token that the data do not have, so no loss shows it.
    trainer.run(stop_requested=spoil)
    assert trainer.layout.steps() == [1]
    warnings = [event.message for event in trainer.messages() if event.level == "warning"]
    assert warnings[0].startswith(f"checkpoint of step 2 failed: {spoiled[0]} has numbers that are")


def test_the_check_looks_at_every_tensor_of_floating_point_numbers() -> None:
    good = {"a": torch.ones(3), "empty": torch.ones(0), "int": torch.ones(2, dtype=torch.int64)}
    assert first_nonfinite(good) is None
    for number in (float("nan"), float("inf"), -float("inf")):
        for dtype in (torch.float32, torch.bfloat16, torch.float64):
            bad = torch.ones(1000, dtype=dtype)
            bad[777] = number
            assert first_nonfinite({**good, "bad": bad}) == "bad"
    # Their sum overflows, but each one is a number.
    assert first_nonfinite({"large": torch.full((9,), 3e38)}) is None
