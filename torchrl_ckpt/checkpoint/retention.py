"""Removes committed checkpoints that are no longer kept; runs only after a commit."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from torchrl_ckpt.checkpoint.commit import out_of_sight
from torchrl_ckpt.checkpoint.layout import Layout
from torchrl_ckpt.checkpoint.policy import Retention, judge

_log = logging.getLogger(__name__)


def prune(layout: Layout, rules: Retention) -> list[int]:
    """Remove the steps that `rules` do not keep and say which went.

    A failed deletion is warned of and tried again the next time.
    """
    # Where all are kept there may be thousands, and nothing to ask of any.
    verdicts = [] if rules.keep is None else judge(layout.steps(), rules)
    return remove(layout, [verdict.step for verdict in verdicts if not verdict.kept])


def remove(layout: Layout, steps: Iterable[int]) -> list[int]:
    """Remove committed `steps`, and what is left of earlier deletions; says which steps went."""
    removed = []
    for directory in [*layout.deletions().values(), *layout.outdated().values()]:
        with _tried_again(directory.name):
            shutil.rmtree(directory)
    for step in steps:
        with _tried_again(layout.step(step).name):
            out_of_sight(layout, step)
            shutil.rmtree(layout.deleting(step))
            removed.append(step)
    return removed


@contextmanager
def _tried_again(name: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        _log.warning("could not remove checkpoint %s, will try again: %s", name, error)
