"""Names below a run's directory, and its identity."""

from __future__ import annotations

import errno
import re
import secrets
from dataclasses import dataclass
from pathlib import Path

from torchrl_ckpt.plugin_api.durable_files import make_directory, write_json
from torchrl_ckpt.plugin_api.errors import RunDirectoryDamaged
from torchrl_ckpt.plugin_api.untrusted_files import read_bounded_json

_IDENTITY = "run.json"
_MAX_IDENTITY_BYTES = 64 * 1024
# For their owner only: nobody knows what plugins and libraries print.
LOGS_MODE = 0o700

_ATTEMPT = re.compile(r"attempt_(0|[1-9]\d*)")
_ID_BYTES = 16


def new_id() -> str:
    """A random identity, in hexadecimal digits, that no other run or start has."""
    return secrets.token_hex(_ID_BYTES)


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
    def dry_run(self) -> Path:
        """What `--dry-run` would start, in the form of `resolved`; nothing reads it."""
        return self.root / "dry_run.json"

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

    @property
    def starting(self) -> Path:
        """Exists until the trainer begins its first step; so a full disk cannot hide that."""
        return self.logs / "starting"

    @property
    def heartbeats(self) -> Path:
        """The files by which processes show progress (`plugin_api/heartbeat.py`)."""
        return self.logs / "heartbeats"

    def log(self, component: str) -> Path:
        return self.logs / f"{component}.log"


def read_run_id(root: Path) -> str | None:
    """The identity of the run in `root`; None if no start has given it one.

    It is made once and survives resumes and a move of the directory. A copy has the same one.
    Raises `RunDirectoryDamaged`.
    """
    path = root / _IDENTITY
    try:
        content = read_bounded_json(path, _MAX_IDENTITY_BYTES)
    except FileNotFoundError:
        return None
    except ValueError:
        content = None
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.EFBIG):  # A link, a FIFO; too long.
            raise
        content = None
    run_id = content.get("run_id") if isinstance(content, dict) else None
    if not isinstance(run_id, str) or not run_id:
        raise RunDirectoryDamaged(
            f"{path} holds no run's identity. Restore the file, or delete it: the next start then "
            "makes a new identity"
        )
    return run_id


def settle_run_id(root: Path) -> str:
    """The identity of the run in `root`, made now if it has none. The caller holds a lock."""
    run_id = read_run_id(root)
    if run_id is None:
        run_id = new_id()
        make_directory(root)
        write_json(root / _IDENTITY, {"run_id": run_id})
    return run_id


def next_attempt(root: Path) -> int:
    """The number of the next start of the run in `root`, from 1."""
    matches = (_ATTEMPT.fullmatch(path.name) for path in (root / "logs").glob("attempt_*"))
    return 1 + max((int(match[1]) for match in matches if match), default=0)
