"""Paths below a checkpoint directory, and which steps are committed in it."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

from torchrl_ckpt.config.ckpt import CheckpointConfig

MANIFEST = "manifest.json"
PART = "part.json"
REQUEST = "request.json"
REFUSAL = "refusal.json"

# The trainer's part: the tensors of model and optimiser in the backend's files, the rest as JSON.
TRAINER = "trainer"
TENSORS = "tensors"
STATE = "state.json"
MODEL = "model."
OPTIM = "optim."

_NUMBER = r"(0|[1-9]\d*)"
_STEP = re.compile(rf"step_{_NUMBER}")
_PARTIAL = re.compile(rf"\.step_{_NUMBER}\.partial")
_DELETING = re.compile(rf"\.step_{_NUMBER}\.deleting")
_QUARANTINED = re.compile(rf"step_{_NUMBER}(\.\d+)?")
_REPLACED = re.compile(rf"\.step_{_NUMBER}\.replaced")


def step_in_name(name: str) -> int | None:
    """Return 25 for `step_25` and for `step_25.2`, the second one in quarantine; None for another
    name."""
    match = _QUARANTINED.fullmatch(name)
    return int(match[1]) if match else None


@dataclass(frozen=True)
class Layout:
    """The paths below `root`, a run's `checkpoints`."""

    root: Path

    @classmethod
    def of_run(cls, output_dir: Path, ckpt: CheckpointConfig) -> Layout:
        """Return the layout of the run in `output_dir`."""
        return cls(output_dir / ckpt.directory)

    def step(self, step: int) -> Path:
        """A committed checkpoint. It exists if and only if every part of it is whole."""
        return self.root / f"step_{step}"

    def partial(self, step: int) -> Path:
        """A checkpoint being written; never read by a resume."""
        return self.root / f".step_{step}.partial"

    def deleting(self, step: int) -> Path:
        """A checkpoint being deleted: renamed to this first, so that nobody lists it any more."""
        return self.root / f".step_{step}.deleting"

    def replaced(self, step: int) -> Path:
        """A committed checkpoint that another one of the same step is about to replace."""
        return self.root / f".step_{step}.replaced"

    def quarantine(self, step: int) -> Path:
        """A checkpoint that failed verification or belongs to steps that are done again."""
        return self.root / "quarantine" / f"step_{step}"

    def steps(self) -> list[int]:
        """The committed steps, oldest first."""
        return [step for step in self._numbers(_STEP) if self._is_committed(step)]

    def newest(self) -> int | None:
        """The newest committed step; None if there is none."""
        return next(filter(self._is_committed, reversed(self._numbers(_STEP))), None)

    def named(self) -> dict[int, Path]:
        """Every directory called `step_N` by step, even one that has lost its manifest."""
        return {step: self.step(step) for step in self._numbers(_STEP)}

    def partials(self) -> dict[int, Path]:
        """Checkpoints being written, by step."""
        return {step: self.partial(step) for step in self._numbers(_PARTIAL)}

    def deletions(self) -> dict[int, Path]:
        """Checkpoints being deleted, by step."""
        return {step: self.deleting(step) for step in self._numbers(_DELETING)}

    def replacements(self) -> dict[int, Path]:
        """Checkpoints that were about to be replaced, by step."""
        return {step: self.replaced(step) for step in self._numbers(_REPLACED)}

    def outdated(self) -> dict[int, Path]:
        """Those of the `replacements` that have been replaced."""
        return {n: path for n, path in self.replacements().items() if self.step(n).exists()}

    def quarantined(self) -> list[Path]:
        """Checkpoints in quarantine."""
        found = (self.root / "quarantine").glob("step_*")
        return sorted(path for path in found if step_in_name(path.name) is not None)

    def leftovers(self) -> list[Path]:
        """What an interrupted save or deletion left behind."""
        found = (self.partials(), self.deletions(), self.replacements())
        return [path for paths in found for path in paths.values()]

    def _is_committed(self, step: int) -> bool:
        # Without `Path`, which is slow: every prune asks it of each of maybe thousands of steps.
        return os.path.isfile(f"{self.root}/step_{step}/{MANIFEST}")

    def _numbers(self, name: re.Pattern[str]) -> list[int]:
        # The directory does not exist before the first save.
        entries = os.listdir(self.root) if self.root.is_dir() else ()
        return sorted(int(match[1]) for match in map(name.fullmatch, entries) if match)
