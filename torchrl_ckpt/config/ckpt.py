"""`[ckpt]`: when to save checkpoints, where, and which to keep."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import model_validator

from torchrl_ckpt.config.section import BackendTable, PluginTable, PositiveInt, Seconds, Section


class KeepBestConfig(Section):
    """Keep the checkpoints of the steps with the best values of a metric."""

    metric: str = "loss"
    """The name of the metric in `metrics.jsonl`, such as `loss` or `reward/mean`."""

    component: str = "trainer"
    """The component that writes the metric: `trainer`, `orchestrator` or `evaluation`."""

    direction: Literal["min", "max"] = "min"
    """Whether the smallest (`min`) or the largest (`max`) values are the best."""

    count: PositiveInt = 1
    """The number of best checkpoints to keep."""


class CheckpointConfig(Section):
    """When to save checkpoints, where, and which to keep. Off by default, to save disk space."""

    interval: PositiveInt | None = None
    """Save a checkpoint every this many steps. Unset: only after the last step."""

    keep: PositiveInt | None = None
    """The number of newest checkpoints to keep. Unset: all."""

    keep_every: PositiveInt | None = None
    """Also keep every checkpoint whose step is a multiple of this, however old it is."""

    keep_best: KeepBestConfig | None = None
    """Also keep the checkpoints of the steps with the best values of a metric, however old."""

    resume_step: PositiveInt | Literal["latest"] | None = None
    """Resume from the checkpoint of this step, or from the `latest` undamaged one."""

    resume_from: Path | None = None
    """Resume from a checkpoint of the run in this other directory (a fork); the new run has an
    `output_dir` of its own."""

    on_failure: Literal["continue", "stop"] = "continue"
    """What a failed save (because of a full disk, for example) does to the run. Earlier checkpoints
    stay whole either way; `continue` tries again at the next interval. If the trainer's ranks lose
    each other during a save, the run ends either way: they can no longer agree on anything."""

    save_async: bool = False
    """Write checkpoints while training continues: short for the backend `async_dcp`."""

    directory: str = "checkpoints"
    """The directory of the checkpoints, relative to `output_dir` unless it is absolute."""

    backend: BackendTable = PluginTable(type="dcp")
    """The checkpoint backend, which writes the trainer's tensors to files."""

    timeout: Seconds = 3600.0
    """How long to wait for another process's part of a checkpoint, in seconds. The orchestrator's
    part includes batches that it generates first."""

    @model_validator(mode="after")
    def _settle_backend(self) -> CheckpointConfig:
        if self.save_async and self.backend.type == "dcp":
            # Every option of `dcp` is also an option of `async_dcp`.
            backend = self.backend.model_copy(update={"type": "async_dcp"})
            object.__setattr__(self, "backend", backend)
        elif self.save_async and self.backend.type != "async_dcp":
            raise ValueError(
                f"`save_async` stands for the backend async_dcp, but `backend` is "
                f"{self.backend.type}; leave one of them out"
            )
        return self
