"""Failures of a save: all ranks agree on them, and `ckpt.on_failure` decides what follows."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

from torch.distributed.checkpoint.api import CheckpointException

from torchrl_ckpt.checkpoint.commit import recover
from torchrl_ckpt.checkpoint.layout import Layout
from torchrl_ckpt.plugin_api.errors import CheckpointFailed, UserError
from torchrl_ckpt.run.progress import ProgressLog
from torchrl_ckpt.trainer.distributed import World

_log = logging.getLogger(__name__)


@dataclass
class Outcome:
    """How a stage of a save ended, set when its block ends. `failure` is None if it succeeded."""

    failure: str | None = None

    @property
    def succeeded(self) -> bool:
        return self.failure is None


@contextmanager
def catch_failure() -> Iterator[Outcome]:
    """Record a failure of the block instead of raising it, for `SaveFailures.agreed`."""
    outcome = Outcome()
    try:
        yield outcome
    except (OSError, UserError) as error:
        outcome.failure = str(error)
    # DCP raises a BaseException for a failure on any rank.
    except (Exception, CheckpointException) as error:
        _log.exception("a save failed on this rank")
        outcome.failure = f"{type(error).__name__}: {error}"


class SaveFailures:
    """Has all ranks agree on whether a stage of a save succeeded, and applies `on_failure`.

    Earlier checkpoints stay whole in any case: nothing of the failed one has a committed name.
    """

    def __init__(
        self,
        on_failure: Literal["continue", "stop"],
        layout: Layout,
        world: World,
        progress: ProgressLog,
    ) -> None:
        self._on_failure = on_failure
        self._layout = layout
        self._world = world
        self._progress = progress

    @contextmanager
    def agreed(self, step: int, earlier: Outcome | None = None) -> Iterator[Outcome]:
        """Catch a failure of the block on any rank, and take over this rank's `earlier` one.

        Collective: the outcome is the same on all ranks. Raises `CheckpointFailed` where a failure
        is to end the run, and `RanksDisconnected`.
        """
        with catch_failure() as outcome:
            yield outcome
        own_failure = (earlier and earlier.failure) or outcome.failure
        failures = [failure for failure in self._world.gather(own_failure) if failure is not None]
        if not failures:
            return
        outcome.failure = failures[0]
        message = f"checkpoint of step {step} failed: {failures[0]}"
        if self._world.is_rank_zero:
            self._clear_away()
        if self._on_failure == "stop":
            raise CheckpointFailed(f'{message} (`ckpt.on_failure` is "stop")')
        if self._world.is_rank_zero:
            self._progress.message(f"{message}. Training goes on", "warning")

    def _clear_away(self) -> None:
        """Restore a checkpoint that was to be replaced, and remove the partial one."""
        try:
            recover(self._layout)
        except OSError as error:
            _log.warning("could not clear a failed checkpoint away yet: %s", error)
