"""A recipe for reinforcement learning: its sections and the keys that they share."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

from torchrl_ckpt.config.ckpt import CheckpointConfig
from torchrl_ckpt.config.inference import InferenceConfig
from torchrl_ckpt.config.launcher import LauncherConfig
from torchrl_ckpt.config.orchestrator import OrchestratorConfig
from torchrl_ckpt.config.section import Count, ModelTable, PositiveInt, Section
from torchrl_ckpt.config.trainer import RlTrainerConfig


class RlRecipe(Section):
    """Reinforcement learning: trainer, orchestrator and, if its section is on, inference."""

    shared_keys: ClassVar[tuple[str, ...]] = (
        *("max_steps", "seed", "output_dir", "model", "ckpt", "launcher"),
    )
    """Keys of the root that apply to every section that has them."""

    max_steps: PositiveInt | None = None
    """The last step of trainer and orchestrator."""

    seed: Count | None = None
    """The seed of every process."""

    output_dir: Path | None = None
    """The run's directory. Default: `outputs/` and the recipe's name, in the working directory."""

    model: ModelTable | None = None
    """The model of every process."""

    ckpt: CheckpointConfig | None = None
    """Checkpointing of trainer and orchestrator. `--ckpt` switches it on with its defaults."""

    launcher: LauncherConfig | None = None
    """How the processes of the job are watched."""

    trainer: RlTrainerConfig
    """The training process."""

    orchestrator: OrchestratorConfig
    """The process that generates rollouts."""

    inference: InferenceConfig | None = None
    """The inference server to start with the job. Off: the job uses the server at
    `orchestrator.client.base_url`."""
