"""The end of a checkpoint: all parts awaited, the commit, the prune. Needs no torch.

It is one call, so that a companion process can do it beside the training.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torchrl_ckpt.checkpoint.commit import commit, wait_for_parts
from torchrl_ckpt.checkpoint.layout import TRAINER, Layout
from torchrl_ckpt.checkpoint.part import finish_part
from torchrl_ckpt.checkpoint.retention import prune, retention_rules
from torchrl_ckpt.plugin_api.checkpoint_backends import FileRecord
from torchrl_ckpt.plugin_api.plugin import Json
from torchrl_ckpt.run.attempt import Attempt

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Committer:
    """Commits the checkpoints of an attempt, each of which has a part of each of `parts`."""

    attempt: Attempt
    layout: Layout
    parts: tuple[str, ...]

    def commit(self, step: int, files: Sequence[FileRecord], metadata: Mapping[str, Json]) -> float:
        """Declare the trainer's part whole, of `files`, and commit it with those of the others.

        Returns the seconds that these were waited for. Raises `CheckpointFailed`, `WaitTimeout` or
        `OSError`, and then nothing is committed.
        """
        assert self.attempt.ckpt is not None
        partial = self.layout.partial(step)
        finish_part(partial / TRAINER, files)
        began = time.perf_counter()
        everything = wait_for_parts(partial, self.parts, self.attempt.ckpt.timeout)
        waited = time.perf_counter() - began
        commit(self.layout, step, self.parts, everything, metadata)
        try:
            prune(self.layout, retention_rules(self.attempt))
        except OSError as error:
            _log.warning("step_%d is committed, but older ones stay for now: %s", step, error)
        return waited
