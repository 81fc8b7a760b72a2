"""`[trainer]`, and the sections `optim`, `scheduler` and `packing` below it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from torchrl_ckpt.config.ckpt import CheckpointConfig
from torchrl_ckpt.config.launcher import LauncherConfig
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
    """The peak learning rate, which the schedule scales."""

    betas: tuple[float, float] = (0.9, 0.95)
    """Decay rates of the running averages of the gradient and of its square."""

    eps: Annotated[float, Field(gt=0)] = 1e-8
    """Added to the denominator for numerical stability."""

    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    """Decoupled weight decay."""

    max_norm: Annotated[float, Field(gt=0)] | None = 1.0
    """Clip gradients to this global norm. Off: no clipping."""


class SchedulerConfig(Section):
    """The learning rate schedule: a linear warmup, then the schedule called `name`."""

    name: Literal["constant", "linear", "cosine"] = "constant"
    """The schedule after the warmup."""

    warmup_steps: Count = 0
    """Steps in which the learning rate rises linearly to `optim.lr`."""

    decay_steps: PositiveInt | None = None
    """The step at which the decay ends. Unset: `max_steps`; a run resumed with another `max_steps`
    then follows another schedule."""

    min_ratio: Annotated[float, Field(ge=0, le=1)] = 0.1
    """The learning rate at the end of the decay, as a fraction of `optim.lr`."""


class PackingConfig(Section):
    """How samples are packed into the rows of a forward pass."""

    length: PositiveInt = 128
    """Tokens per row. Samples are never split between rows, nor do they attend to each other."""

    rows: PositiveInt = 64
    """The largest number of rows per forward pass. A step with more rows accumulates gradients over
    several passes."""


class TrainerConfig(Section):
    """The training process, for any source of batches."""

    max_steps: PositiveInt = 40
    """The last step. A resumed run continues counting at the checkpoint's step."""

    seed: Count = 0
    """The seed of everything random in this process."""

    output_dir: Path
    """The run's directory. Default: `outputs/` and the recipe's name, in the working directory."""

    model: ModelTable
    """The model to train."""

    ranks: PositiveInt = 1
    """Processes on this machine, each with a shard of the model (torchrun and FSDP2)."""

    threads: Count = 0
    """CPU threads of each rank. 0: the machine's cores divided by the number of ranks."""

    collective_timeout: Seconds = 3600.0
    """How long a rank waits for the others in a collective operation, in seconds. Raise it where
    one rank may be that much slower, in writing its share of a checkpoint for example. Where a rank
    waits for another process, the others wait longer than this if `rollout_timeout`,
    `publish_timeout` or `ckpt.timeout` is longer."""

    ckpt: CheckpointConfig | None = None
    """Checkpointing. `--ckpt` switches it on with its defaults."""

    launcher: LauncherConfig = LauncherConfig()
    """How the processes are watched."""

    optim: OptimizerConfig = OptimizerConfig()
    """The optimiser."""

    scheduler: SchedulerConfig = SchedulerConfig()
    """The learning rate schedule."""

    packing: PackingConfig = PackingConfig()
    """Sequence packing and gradient accumulation."""

    on_nonfinite: Literal["stop", "skip"] = "stop"
    """What a loss or a gradient norm that is not finite does, before it changes a parameter: `stop`
    ends the run, `skip` leaves the update out (`skipped_update` in the metrics) and goes on; ten of
    them in a row end the run."""

    export_weights: bool = True
    """Export the final model to `weights/step_N` in Hugging Face's format."""

    publish_timeout: Seconds = 600.0
    """How long to try again to write a policy or the final model while the disk refuses it, because
    it is full or failing, in seconds."""


class RlTrainerConfig(TrainerConfig):
    """The trainer of a reinforcement learning job, which learns from rollouts."""

    loss: LossTable = PluginTable(type="grpo")
    """The loss to minimise."""

    warm_start: Path | None = None
    """A recipe for supervised fine-tuning to start from: its final weights are loaded. It is run
    first if they do not exist."""

    logprob_tolerance: Annotated[float, Field(gt=0)] | None = None
    """The largest mean difference between the engine's and the trainer's log-probabilities of a
    step's tokens, in nats, where the same policy drew them: at every step if `async_level` is 0,
    else at the first. Beyond it the run ends before the update. Unset: by the dtypes, 1e-4 (and
    1e-3 for a single token) in float32, 0.1 in 16 bits."""

    rollout_timeout: Seconds = 1800.0
    """How long to wait for a batch of rollouts, in seconds."""
