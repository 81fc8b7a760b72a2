"""Names below a run's directory."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class RunDirectory:
    """The paths of a run. `attempt` counts how often it was started."""

    root: Path
    attempt: int

    @property
    def resolved(self) -> Path:
        """The recipe with every value in place, which the run's processes read."""
        return self.root / "resolved.json"

    @property
    def metrics(self) -> Path:
        return self.root / "metrics.jsonl"

    @property
    def rollouts(self) -> Path:
        return self.root / "rollouts"

    @property
    def weights(self) -> Path:
        return self.root / "weights"

    @property
    def logs(self) -> Path:
        return self.root / "logs" / f"attempt_{self.attempt}"

    @property
    def progress(self) -> Path:
        return self.logs / "progress.jsonl"

    @property
    def stop(self) -> Path:
        """Its existence asks the trainer to leave after the step under way."""
        return self.logs / "stop"

    def log(self, component: str) -> Path:
        return self.logs / f"{component}.log"
