"""`[ckpt]`: when to checkpoint, where, and what to keep."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import model_validator

from torchrl_ckpt.config.section import BackendTable, PluginTable, PositiveInt, Seconds, Section


class KeepBestConfig(Section):
    """Keep the checkpoints of the steps at which a metric was best."""

    metric: str = "loss"
    """The metric's name in `metrics.jsonl`, such as `loss` or `reward/mean`."""

    component: str = "trainer"
    """Whose metric it is: `trainer`, `orchestrator` or `evaluation`."""

    direction: Literal["min", "max"] = "min"
    """Which is better: the smallest or the largest."""

    count: PositiveInt = 1
    """How many of the best to keep."""


class CheckpointConfig(Section):
    """When to checkpoint, where, and what to keep. Off unless asked for, to save disk space."""

    interval: PositiveInt | None = None
    """Save every this many steps. Unset: only the last step is saved."""

    keep: PositiveInt | None = None
    """How many of the newest checkpoints to keep. Unset: all."""

    keep_every: PositiveInt | None = None
    """Keep every checkpoint whose step is a multiple of this as well, however old."""

    keep_best: KeepBestConfig | None = None
    """Keep the steps at which a metric was best as well, however old."""

    resume_step: PositiveInt | Literal["latest"] | None = None
    """Go on from this step's checkpoint, or from the `latest` good one."""

    resume_from: Path | None = None
    """Take the checkpoint from this other run and go on in a directory of one's own (a fork)."""

    on_failure: Literal["continue", "stop"] = "continue"
    """What a save that fails (a full disk, say) does to the run. Earlier checkpoints stay whole
    either way; `continue` tries again at the next interval."""

    save_async: bool = False
    """Write checkpoints while training goes on: the backend `async_dcp` in place of `dcp`."""

    directory: str = "checkpoints"
    """Where the step directories live, below `output_dir` unless absolute."""

    backend: BackendTable = PluginTable(type="dcp")
    """What puts the trainer's tensors into files."""

    timeout: Seconds = 3600.0
    """How long to wait for the other process's part of a checkpoint, in seconds. The orchestrator
    first generates the batches that the checkpoint carries."""

    @model_validator(mode="after")
    def _saved_async(self) -> CheckpointConfig:
        if self.save_async and self.backend.type == "dcp":
            # Every option of `dcp` is one of `async_dcp`, too.
            backend = self.backend.model_copy(update={"type": "async_dcp"})
            object.__setattr__(self, "backend", backend)
        elif self.save_async and self.backend.type != "async_dcp":
            raise ValueError(
                f"`save_async` stands for the backend async_dcp, but `backend` is "
                f"{self.backend.type}; leave one of them out"
            )
        return self
