"""A failure of a save on one rank is one of all ranks: the save is given up, and said to be."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

from torchrl_ckpt.checkpoint.commit import recover
from torchrl_ckpt.checkpoint.layout import Layout
from torchrl_ckpt.plugin_api.errors import CheckpointFailed, UserError
from torchrl_ckpt.run.progress import ProgressLog
from torchrl_ckpt.trainer.distributed import World

_log = logging.getLogger(__name__)


@dataclass
class Outcome:
    """How a stage of a save ended, known after its block. `reason` is None where it went well."""

    reason: str | None = None

    @property
    def good(self) -> bool:
        return self.reason is None


@contextmanager
def failure_of_this_rank() -> Iterator[Outcome]:
    """Note a failure in the block, for `Failures.agreed` to make it one of all ranks."""
    outcome = Outcome()
    try:
        yield outcome
    except (OSError, UserError) as error:
        outcome.reason = str(error)


class SaveFailures:
    """Has all ranks agree on whether a stage of a save went well, and does what `on_failure` says.

    Earlier checkpoints are whole whatever happens: nothing of this one is under their names.
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
    def agreed(self, step: int, before: Outcome | None = None) -> Iterator[Outcome]:
        """The outcome of the block on all ranks, and of what was noted `before`; collective.

        Raises `CheckpointFailed` where a failure is to end the run.
        """
        with failure_of_this_rank() as outcome:
            yield outcome
        mine = (before and before.reason) or outcome.reason
        reasons = [reason for reason in self._world.gather(mine) if reason is not None]
        if not reasons:
            return
        outcome.reason = reasons[0]
        text = f"checkpoint of step {step} failed: {reasons[0]}"
        if self._world.leads:
            self._clear_away()
        if self._on_failure == "stop":
            raise CheckpointFailed(f'{text} (`ckpt.on_failure` is "stop")')
        if self._world.leads:
            self._progress.message(f"{text}. Training goes on", "warning")

    def _clear_away(self) -> None:
        """Put back what was about to be replaced, and remove what will not be committed."""
        try:
            recover(self._layout)
        except OSError as error:
            _log.warning("could not clear a failed checkpoint away yet: %s", error)
