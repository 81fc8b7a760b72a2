"""`[trainer]`, and the sections `optim`, `scheduler` and `packing` below it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from torchrl_ckpt.config.ckpt import CheckpointConfig
from torchrl_ckpt.config.section import (
    Count,
    LossTable,
    ModelTable,
    PluginTable,
    PositiveInt,
    Seconds,
    Section,
)


class OptimizerConfig(Section):
    """AdamW."""

    lr: Annotated[float, Field(gt=0)] = 3e-4
    """The learning rate that the schedule scales."""

    betas: tuple[float, float] = (0.9, 0.95)
    """Decay rates of the running means of the gradient and of its square."""

    eps: Annotated[float, Field(gt=0)] = 1e-8
    """Added to the denominator."""

    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    """Decoupled weight decay."""

    max_norm: Annotated[float, Field(gt=0)] | None = 1.0
    """Gradients are clipped to this global norm. Off: `--no-optim.max-norm`."""


class SchedulerConfig(Section):
    """The learning rate's course: a linear warmup, then what `name` says."""

    name: Literal["constant", "linear", "cosine"] = "constant"
    """What the learning rate does after the warmup."""

    warmup_steps: Count = 0
    """Steps over which the rate rises linearly to its full value."""

    decay_steps: PositiveInt | None = None
    """The step at which the decay ends. Unset: `max_steps`, and then a run that is resumed with
    another `max_steps` follows another schedule than one that was not."""

    min_ratio: Annotated[float, Field(ge=0, le=1)] = 0.1
    """The rate at the end of the decay, as a share of the full one."""


class PackingConfig(Section):
    """How samples are laid into the rows of a forward pass."""

    length: PositiveInt = 128
    """Tokens a row. Samples are packed into rows whole; attention never crosses between them."""

    rows: PositiveInt = 64
    """Rows a forward pass at most. More are done one after the other, accumulating gradients."""


class TrainerConfig(Section):
    """The training process, whatever feeds it."""

    max_steps: PositiveInt = 40
    """The last step. A resumed run counts on from the checkpoint's step."""

    seed: Count = 0
    """Everything random is drawn from this."""

    output_dir: Path
    """The run's directory. Unset: `outputs/` and the name of the recipe, below the working
    directory."""

    attempt: Count = 0
    """Which start of this run it is. The runner counts; who starts trainer and orchestrator by
    hand gives both the same new number, so that neither takes files of an earlier start."""

    model: ModelTable
    """The model that is trained."""

    ranks: PositiveInt = 1
    """Processes on this machine, each with a shard of the model (torchrun and FSDP2)."""

    threads: Count = 0
    """CPU threads of each rank. 0: the machine's cores divided among the ranks."""

    ckpt: CheckpointConfig | None = None
    """CheckpointConfig. `--ckpt` switches it on with its defaults."""

    optim: OptimizerConfig = OptimizerConfig()
    """The optimiser."""

    scheduler: SchedulerConfig = SchedulerConfig()
    """The learning rate schedule."""

    packing: PackingConfig = PackingConfig()
    """Sequence packing and gradient accumulation."""

    export_weights: bool = True
    """Write the final model to `weights/step_N` in Hugging Face's format."""


class RlTrainerConfig(TrainerConfig):
    """The trainer of a reinforcement learning job, fed with rollouts."""

    loss: LossTable = PluginTable(type="grpo")
    """What is minimised."""

    warm_start: Path | None = None
    """A recipe for supervised fine-tuning whose final weights are the start. They are trained
    first if they are not there."""

    rollout_timeout: Seconds = 1800.0
    """How long to wait for a batch of rollouts, in seconds."""
