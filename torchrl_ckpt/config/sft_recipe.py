"""A recipe for supervised fine-tuning: the trainer's options and `[data]`."""

from __future__ import annotations

from pathlib import Path

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
    """What supervised fine-tuning learns: JSON Lines files, or the problems of an environment."""

    files: list[Path] = []
    """JSON Lines files, one sample a line: `{"prompt": ..., "completion": ...}` or
    `{"messages": [...]}`. The loss is on the completion, or on the assistant's turns."""

    environment: EnvironmentTable | None = None
    """Learn the answers of this environment's training problems instead."""

    batch_size: PositiveInt = 512
    """Samples a step, over all ranks."""

    num_workers: Count = 0
    """Processes that tokenize beside the trainer, for each rank."""

    @model_validator(mode="after")
    def _one_source(self) -> SftDataConfig:
        if bool(self.files) == (self.environment is not None):
            raise ValueError("give either `files` or `environment`, not both and not neither")
        return self


class SftRecipe(TrainerConfig):
    """Supervised fine-tuning: the trainer alone, fed from a data set."""

    data: SftDataConfig
    """The data set."""

    loss: LossTable = PluginTable(type="cross_entropy")
    """What is minimised."""
