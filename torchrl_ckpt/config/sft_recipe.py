"""A recipe for supervised fine-tuning: the trainer's options and `[data]`."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import model_validator

from torchrl_ckpt.config.section import (
    Count,
    EnvironmentTable,
    LossTable,
    PluginTable,
    PositiveInt,
    Section,
)
from torchrl_ckpt.config.trainer import TrainerConfig


class SftDataConfig(Section):
    """The samples to learn: from JSON Lines files, or from the problems of an environment."""

    files: list[Path] = []
    """JSON Lines files, plain or gzipped. One sample a line: `{"prompt": ..., "completion": ...}`
    or `{"messages": [...]}`. The loss is on the completion, or on the assistant's turns."""

    environment: EnvironmentTable | None = None
    """Learn the answers to this environment's training problems instead of `files`."""

    batch_size: PositiveInt = 512
    """Samples per step, over all ranks."""

    too_long: Literal["error", "drop", "truncate"] = "error"
    """What becomes of samples with more tokens than `packing.length` or than the model can take:
    `error` refuses the data set before the first step, `drop` leaves them out, `truncate` cuts
    them off. How many there are is shown at the start."""

    num_workers: Count = 0
    """Worker processes of each rank that tokenize samples. 0: the trainer itself does."""

    @model_validator(mode="after")
    def _one_source(self) -> SftDataConfig:
        if bool(self.files) == (self.environment is not None):
            raise ValueError("give either `files` or `environment`, and not both")
        return self


class SftRecipe(TrainerConfig):
    """Supervised fine-tuning: a trainer that learns from a data set."""

    data: SftDataConfig
    """The data set."""

    loss: LossTable = PluginTable(type="cross_entropy")
    """The loss to minimise."""
