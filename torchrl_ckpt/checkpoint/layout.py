"""Names below a checkpoint directory, and which steps are committed there."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

MANIFEST = "manifest.json"
PART = "part.json"
REQUEST = "request.json"
REFUSAL = "refusal.json"

# The trainer's part: tensors as the backend writes them, of the model and of the optimiser, and all
# else as JSON.
TRAINER = "trainer"
TENSORS = "tensors"
STATE = "state.json"
MODEL = "model."
OPTIM = "optim."

_STEP = re.compile(r"step_(\d+)")
_PARTIAL = re.compile(r"\.step_(\d+)\.partial")
_DELETING = re.compile(r"\.step_(\d+)\.deleting")
_REPLACED = re.compile(r"\.step_(\d+)\.replaced")


@dataclass(frozen=True)
class Layout:
    """The paths below `root`, a run's `checkpoints`."""

    root: Path

    def step(self, step: int) -> Path:
        """A committed checkpoint. It is there if and only if every part of it is whole."""
        return self.root / f"step_{step}"

    def partial(self, step: int) -> Path:
        """A checkpoint being written; never read by a resume."""
        return self.root / f".step_{step}.partial"

    def deleting(self, step: int) -> Path:
        """A checkpoint being deleted: out of sight first, then removed."""
        return self.root / f".step_{step}.deleting"

    def replaced(self, step: int) -> Path:
        """A committed checkpoint whose place another one of the same step is about to take."""
        return self.root / f".step_{step}.replaced"

    def quarantine(self, step: int) -> Path:
        """Where a checkpoint goes that failed verification."""
        return self.root / "quarantine" / f"step_{step}"

    def steps(self) -> list[int]:
        """The committed steps, oldest first."""
        return [step for step, path in self.named().items() if (path / MANIFEST).is_file()]

    def newest(self) -> int | None:
        """The last committed step."""
        named = reversed(self.named().items())
        return next((step for step, path in named if (path / MANIFEST).is_file()), None)

    def named(self) -> dict[int, Path]:
        """Every directory called `step_N`, by step, even one that has lost its manifest."""
        return self._matching(_STEP)

    def partials(self) -> dict[int, Path]:
        """Checkpoints being written, by step."""
        return self._matching(_PARTIAL)

    def deletions(self) -> dict[int, Path]:
        """Checkpoints being deleted, by step."""
        return self._matching(_DELETING)

    def replacements(self) -> dict[int, Path]:
        """Checkpoints whose place was being taken, by step."""
        return self._matching(_REPLACED)

    def outdated(self) -> dict[int, Path]:
        """Those of the `replacements` whose place has been taken."""
        return {n: path for n, path in self.replacements().items() if self.step(n).exists()}

    def quarantined(self) -> list[Path]:
        """Checkpoints that failed verification."""
        return sorted((self.root / "quarantine").glob("step_*"))

    def leftovers(self) -> list[Path]:
        """What an interrupted save or deletion left behind."""
        found = (self.partials(), self.deletions(), self.replacements())
        return [path for paths in found for path in paths.values()]

    def _matching(self, name: re.Pattern[str]) -> dict[int, Path]:
        # The directory is not there before the first save.
        entries = self.root.iterdir() if self.root.is_dir() else ()
        found = ((name.fullmatch(entry.name), entry) for entry in entries)
        return dict(sorted((int(match[1]), entry) for match, entry in found if match))
