"""The end of a checkpoint: all parts awaited, the commit, the prune. Needs no torch.

It is one call, so that a companion process can do it beside the training.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from torchrl_ckpt.checkpoint.commit import commit, wait_for_parts
from torchrl_ckpt.checkpoint.layout import TRAINER, Layout
from torchrl_ckpt.checkpoint.part import finish_part
from torchrl_ckpt.checkpoint.retention import prune, retention_rules
from torchrl_ckpt.config.ckpt import CheckpointConfig
from torchrl_ckpt.plugin_api.checkpoint_backends import FileRecord
from torchrl_ckpt.plugin_api.plugin import Json

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Committer:
    """How the checkpoints of a run are committed: of which `parts`, and by which rules kept.

    `metrics` is the run's `metrics.jsonl`.
    """

    config: CheckpointConfig
    layout: Layout
    parts: tuple[str, ...]
    metrics: Path

    def commit(self, step: int, files: Sequence[FileRecord], about: Mapping[str, Json]) -> float:
        """Declare the trainer's part whole, of `files`, and commit it with those of the others.

        Returns the seconds that these were waited for. Raises `CheckpointFailed`, `WaitTimeout` or
        `OSError`, and then nothing is committed.
        """
        partial = self.layout.partial(step)
        finish_part(partial / TRAINER, files)
        began = time.perf_counter()
        everything = wait_for_parts(partial, self.parts, self.config.timeout)
        waited = time.perf_counter() - began
        commit(self.layout, step, self.parts, everything, about)
        try:
            prune(self.layout, retention_rules(self.config, self.metrics))
        except OSError as error:
            _log.warning("step_%d is committed, but older ones stay for now: %s", step, error)
        return waited
