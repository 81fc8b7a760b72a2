"""A recipe for reinforcement learning: its sections and the keys that they share."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

from torchrl_ckpt.config.ckpt import CheckpointConfig
from torchrl_ckpt.config.inference import InferenceConfig
from torchrl_ckpt.config.orchestrator import OrchestratorConfig
from torchrl_ckpt.config.section import Count, ModelTable, PositiveInt, Section
from torchrl_ckpt.config.trainer import RlTrainerConfig


class RlRecipe(Section):
    """Reinforcement learning: trainer, orchestrator and, if it has its section, inference."""

    shared_keys: ClassVar[tuple[str, ...]] = ("max_steps", "seed", "output_dir", "model", "ckpt")
    """Keys of the root that reach every section that has them."""

    max_steps: PositiveInt | None = None
    """The last step, of trainer and orchestrator."""

    seed: Count | None = None
    """The seed of every process."""

    output_dir: Path | None = None
    """The run's directory. Unset: `outputs/` and the name of the recipe, below the working
    directory."""

    model: ModelTable | None = None
    """The model of every process."""

    ckpt: CheckpointConfig | None = None
    """CheckpointConfig, of trainer and orchestrator. `--ckpt` switches it on with its defaults."""

    trainer: RlTrainerConfig
    """The training process."""

    orchestrator: OrchestratorConfig
    """The process that makes rollouts."""

    inference: InferenceConfig | None = None
    """The server to start with the job. Off: the job uses the one at
    `orchestrator.client.base_url`."""
