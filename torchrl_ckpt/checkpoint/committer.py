"""Commits a checkpoint: waits for all parts, commits, and deletes what retention does not keep.

It needs no torch, so that a worker process starts fast and does it beside the training.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from torchrl_ckpt.checkpoint.commit import commit, wait_for_parts
from torchrl_ckpt.checkpoint.layout import TRAINER, Layout
from torchrl_ckpt.checkpoint.part import finish_part, is_asked
from torchrl_ckpt.checkpoint.retention import prune, retention_rules
from torchrl_ckpt.checkpoint.rollout_part import ORCHESTRATOR, write_from_files
from torchrl_ckpt.plugin_api.checkpoint_backends import FileRecord
from torchrl_ckpt.plugin_api.durable_files import fsync_directory
from torchrl_ckpt.plugin_api.errors import WorkerProcessDied
from torchrl_ckpt.plugin_api.plugin import Json
from torchrl_ckpt.plugin_api.worker_process import WorkerProcess
from torchrl_ckpt.run import logs
from torchrl_ckpt.run.attempt import Attempt

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Committer:
    """Commits the checkpoints of an attempt, which consist of the parts of `parts`."""

    attempt: Attempt
    layout: Layout
    parts: tuple[str, ...]

    def commit(self, step: int, files: Sequence[FileRecord], metadata: Mapping[str, Json]) -> float:
        """Finish the trainer's part, which has `files`, and commit the checkpoint of `step`.

        Returns the seconds that it waited for the other parts. Raises `CheckpointFailed`,
        `CheckpointDamaged`, `WaitTimeout` or `OSError`, and then nothing is committed.
        """
        assert self.attempt.ckpt is not None
        partial = self.layout.partial(step)
        finish_part(partial / TRAINER, files)
        began = time.perf_counter()
        all_files = wait_for_parts(
            partial,
            self.parts,
            self.attempt.ckpt.timeout,
            on_wait=lambda part: self._replace(part, partial, step),
        )
        waited = time.perf_counter() - began
        commit(self.layout, step, self.parts, all_files, metadata)
        try:
            prune(self.layout, retention_rules(self.attempt))
        except OSError as error:
            _log.warning("step_%d is committed; older steps are not deleted yet: %s", step, error)
        return waited

    def _replace(self, part: str, partial: Path, step: int) -> None:
        """Write the orchestrator's part in its place where the run leaves.

        It may have died, or may wait for a server that has.
        """
        if part != ORCHESTRATOR or (partial / part).exists():
            return
        if self.attempt.run.stop.exists() or not is_asked(partial, ORCHESTRATOR):
            write_from_files(partial, step, self.attempt)


class CommitterProcess:
    """Lets a worker process do a `Committer`'s work, beside the training."""

    def __init__(self, committer: Committer) -> None:
        self._committer = committer
        self._process = WorkerProcess("checkpoint committer", (logs.configure, ()))

    def start(self) -> None:
        """Start the process unless it is alive. If that fails, the next `commit` fails as well."""
        try:
            self._process.start()
        except OSError as error:
            _log.warning("could not start the checkpoint committer: %s", error)

    def commit(self, step: int, files: Sequence[FileRecord], metadata: Mapping[str, Json]) -> float:
        """Do what `Committer.commit` does. Raises `WorkerProcessDied` as well."""
        function: Callable[..., float] = Committer.commit
        try:
            return self._process.call(function, self._committer, step, files, metadata)
        except WorkerProcessDied as death:
            # It may have died after the rename that commits.
            layout = self._committer.layout
            if layout.partial(step).exists() or not layout.step(step).exists():
                raise
            fsync_directory(layout.root)
            _log.warning("%s after it had committed step_%d", death, step)
            return 0.0

    def close(self) -> None:
        self._process.close()
