"""Names below a checkpoint directory, and which steps are committed there."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

MANIFEST = "manifest.json"
PART = "part.json"
REQUEST = "request.json"

_STEP = re.compile(r"step_(\d+)")
_UNFINISHED = re.compile(r"\.step_(\d+)\.(?:partial|deleting)")


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

    def quarantine(self, step: int) -> Path:
        """Where a checkpoint goes that failed verification."""
        return self.root / "quarantine" / f"step_{step}"

    def steps(self) -> list[int]:
        """The committed steps, oldest first."""
        return sorted(
            int(match[1])
            for entry in self._entries()
            if (match := _STEP.fullmatch(entry.name)) and (entry / MANIFEST).is_file()
        )

    def partials(self) -> dict[int, Path]:
        """Checkpoints being written, by step."""
        return {
            int(match[1]): entry
            for entry in self._entries()
            if (match := _UNFINISHED.fullmatch(entry.name)) and entry.name.endswith(".partial")
        }

    def leftovers(self) -> list[Path]:
        """What an interrupted save or deletion left behind."""
        return [entry for entry in self._entries() if _UNFINISHED.fullmatch(entry.name)]

    def _entries(self) -> list[Path]:
        # The directory is not there before the first save.
        return sorted(self.root.iterdir()) if self.root.is_dir() else []
