"""Removes committed checkpoints that are no longer kept; runs only after a commit."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Collection

from torchrl_ckpt.checkpoint.commit import out_of_sight
from torchrl_ckpt.checkpoint.layout import Layout
from torchrl_ckpt.checkpoint.policy import expendable

_log = logging.getLogger(__name__)


def prune(
    layout: Layout, *, keep: int | None, keep_every: int | None, protected: Collection[int]
) -> list[int]:
    """Remove what may go and say which steps went. A failed deletion is tried again next time."""
    removed = []
    for step in expendable(layout.steps(), keep=keep, keep_every=keep_every, protected=protected):
        try:
            out_of_sight(layout, step)
            shutil.rmtree(layout.deleting(step))
        except OSError as error:
            _log.warning("could not remove checkpoint step_%d, will try again: %s", step, error)
        else:
            removed.append(step)
    return removed
