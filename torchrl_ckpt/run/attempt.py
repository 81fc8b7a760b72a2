"""One start of a run: what was settled before its processes began, the same for all of them."""

from __future__ import annotations

from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field

from torchrl_ckpt.config.ckpt import CheckpointConfig
from torchrl_ckpt.run.directory import RunDirectory, new_id


class Attempt(BaseModel):
    """A start of a run, fresh or resumed.

    The launcher settles it once (`launcher/start.py`) and writes it to `resolved.json`, where the
    trainer, the orchestrator and the manifests take it from as it is.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    output_dir: Path
    run_id: str = ""
    """The run's identity, which stays the same from start to start (`run/directory.py`). Empty
    where it is unknown."""

    id: str = Field(default_factory=new_id)
    """This start's identity. What trainer and orchestrator write for each other bears it, since a
    number may repeat: in a run whose logs were removed, or between components started by hand."""

    number: int
    """Counts the starts of a run from 1, and names its logs; 0 where none has begun."""

    max_steps: int
    """The last step."""

    resume_step: int | None
    """The step of the verified checkpoint to resume from; None for a fresh start."""

    ckpt: CheckpointConfig | None
    """Checkpointing; None where it is off. Its own `resume_step` is what the user asked for."""

    @property
    def run(self) -> RunDirectory:
        """The paths of this attempt."""
        return RunDirectory(self.output_dir, self.number)
