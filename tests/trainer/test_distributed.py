"""Limits of collectives follow from the options that bound them; ranks draw their own numbers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from torchrl_ckpt.config.ckpt import CheckpointConfig
from torchrl_ckpt.config.section import PluginTable
from torchrl_ckpt.config.trainer import RlTrainerConfig, TrainerConfig
from torchrl_ckpt.trainer.distributed import (
    MARGIN_SECONDS,
    collective_limits,
    seed_everything,
)

SECTION: dict[str, Any] = {"output_dir": Path("run"), "model": PluginTable(type="none")}


def test_the_ranks_wait_longer_than_rank_zero_waits_for_the_other_parts() -> None:
    config = TrainerConfig(**SECTION)
    for timeout in (config.collective_timeout, 10 * config.collective_timeout):
        limits = collective_limits(config, CheckpointConfig(timeout=timeout))
        assert limits.checkpoint_seconds == timeout + MARGIN_SECONDS


def test_a_rank_waits_longer_for_another_one_than_that_one_waits_for_rollouts() -> None:
    config = RlTrainerConfig(**SECTION, rollout_timeout=50_000)
    assert collective_limits(config, None).training_seconds == 50_000 + MARGIN_SECONDS


def test_where_nothing_else_is_waited_for_the_option_is_the_limit() -> None:
    config = TrainerConfig(**SECTION, collective_timeout=7200)
    limits = collective_limits(config, None)
    assert (limits.training_seconds, limits.checkpoint_seconds) == (7200, 7200)


@pytest.mark.parametrize("timeout", [1.0, 3600.0])
def test_no_limit_is_below_the_option(timeout: float) -> None:
    config = RlTrainerConfig(**SECTION, collective_timeout=20_000, rollout_timeout=timeout)
    limits = collective_limits(config, CheckpointConfig(timeout=timeout))
    assert (limits.training_seconds, limits.checkpoint_seconds) == (20_000, 20_000)


def test_ranks_have_random_numbers_of_their_own() -> None:
    drawn = []
    for stream in range(3):
        seed_everything(7, stream)
        drawn.append(tuple(torch.rand(4).tolist()))
    assert len(set(drawn)) == 3
