"""Names below a run's directory, and the lock that keeps a second run out of it."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from torchrl_ckpt.plugin_api.errors import RunDirectoryInUse, RunDirectoryUnwritable


@dataclass(frozen=True)
class RunDirectory:
    """The paths of a run. `attempt` is the number of the start whose logs are meant."""

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
        """Its existence asks the trainer to leave after the current step."""
        return self.logs / "stop"

    def log(self, component: str) -> Path:
        return self.logs / f"{component}.log"


def next_attempt(root: Path) -> int:
    """The number of the next start of the run in `root`, from 1."""
    earlier = (root / "logs").glob("attempt_*")
    return 1 + max((int(path.name.removeprefix("attempt_")) for path in earlier), default=0)


@contextmanager
def locked_run(root: Path) -> Iterator[None]:
    """Create the run's directory if need be and hold its lock.

    The kernel releases the lock however this process ends. Raises `RunDirectoryUnwritable`, and
    `RunDirectoryInUse` where another process holds the lock.
    """
    try:
        root.mkdir(parents=True, exist_ok=True)
        lock = open(root / ".lock", "a+")  # noqa: SIM115 - closed below
    except OSError as error:
        raise RunDirectoryUnwritable(
            f"cannot write to the run's directory {root}: {error.strerror}. Choose another "
            "`--output-dir`, or make this one writable"
        ) from error
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.seek(0)
            raise RunDirectoryInUse(
                f"{root} is in use by another run (process {lock.read().strip()}). Wait until it "
                "has ended, or choose another `--output-dir`"
            ) from None
        lock.truncate(0)
        lock.write(str(os.getpid()))
        lock.flush()
        yield
