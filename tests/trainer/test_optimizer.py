"""The learning rate follows the schedule that the recipe names."""

from __future__ import annotations

import pytest

from torchrl_ckpt.config.trainer import SchedulerConfig
from torchrl_ckpt.trainer.optimizer import lr_factor


def test_warmup_reaches_the_full_rate_at_its_last_step() -> None:
    config = SchedulerConfig(warmup_steps=4)
    assert [lr_factor(done, config, 10) for done in range(5)] == [0.25, 0.5, 0.75, 1.0, 1.0]


def test_linear_ends_at_the_least_ratio_and_stays_there() -> None:
    config = SchedulerConfig(name="linear", warmup_steps=2, decay_steps=12, min_ratio=0.1)
    assert lr_factor(2, config, 99) == 1.0
    assert lr_factor(7, config, 99) == pytest.approx(0.55)
    assert lr_factor(12, config, 99) == lr_factor(50, config, 99) == pytest.approx(0.1)


def test_cosine_is_half_way_down_in_the_middle() -> None:
    config = SchedulerConfig(name="cosine", min_ratio=0.0)
    assert lr_factor(5, config, max_steps=10) == pytest.approx(0.5)
    assert lr_factor(10, config, max_steps=10) == pytest.approx(0.0)


def test_decay_steps_make_the_schedule_independent_of_max_steps() -> None:
    fixed = SchedulerConfig(name="linear", decay_steps=40)
    assert lr_factor(15, fixed, max_steps=20) == lr_factor(15, fixed, max_steps=40)
    loose = SchedulerConfig(name="linear")
    assert lr_factor(15, loose, max_steps=20) != lr_factor(15, loose, max_steps=40)
