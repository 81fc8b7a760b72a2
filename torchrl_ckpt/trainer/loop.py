"""The training loop, the same for supervised fine-tuning and reinforcement learning."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass

from torchrl_ckpt.checkpoint.layout import TRAINER
from torchrl_ckpt.run.metrics import MetricsLog
from torchrl_ckpt.run.progress import ProgressLog
from torchrl_ckpt.trainer.checkpointer import Checkpointer, NullCheckpointer
from torchrl_ckpt.trainer.distributed import World
from torchrl_ckpt.trainer.publisher import Publisher
from torchrl_ckpt.trainer.state import TrainingState
from torchrl_ckpt.trainer.train_step import TrainStep

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class LoopOptions:
    """When training ends, and which models it writes.

    With `publish_policies`, every step's policy, for the orchestrator to serve; else the final
    model if `export_weights`. Training ends after `max_steps`, or after the step at whose end
    `stop_requested` returns true on any rank.
    """

    max_steps: int
    publish_policies: bool
    export_weights: bool
    stop_requested: Callable[[], bool]


@dataclass(frozen=True)
class LoopLogs:
    """Where the loop writes what it has done; only rank 0 does."""

    metrics: MetricsLog
    progress: ProgressLog


class Loop:
    """Trains step after step: batch, update, metrics, policy, checkpoint."""

    def __init__(
        self,
        state: TrainingState,
        train_step: TrainStep,
        publisher: Publisher,
        checkpointer: Checkpointer | NullCheckpointer,
        logs: LoopLogs,
        world: World,
        options: LoopOptions,
    ) -> None:
        self._state = state
        self._train_step = train_step
        self._publisher = publisher
        self._checkpointer = checkpointer
        self._logs = logs
        self._world = world
        self._options = options

    def run(self) -> None:
        """Train. Returns after the last step, whose checkpoint may still be in progress."""
        state, options, checkpointer = self._state, self._options, self._checkpointer
        if options.publish_policies:
            self._publisher.publish(state.progress.step, last=False)
        while state.progress.step < options.max_steps:
            row = self._step()
            step = state.progress.step
            # Before the commit, so that a run resumed from this step finds the row.
            if self._world.is_rank_zero:
                self._logs.metrics.write(TRAINER, step, row)
            stopping = step < options.max_steps and self._stop_requested()
            last = stopping or step == options.max_steps
            # The orchestrator's part of a checkpoint relies on this order: see
            # `Checkpointer.request`. A committed last step means that its model is there as well.
            checkpointer.request(step, last=last)
            if options.publish_policies:
                self._publisher.publish(step, last=last)
            elif options.export_weights and step == options.max_steps:
                self._publisher.export_final(step)
            checkpointer.save(step, state)
            if stopping:
                _log.warning("stopped after step %d of %d, as requested", step, options.max_steps)
                return

    def _step(self) -> dict[str, float]:
        """Do the next step; return its row of metrics."""
        progress = self._state.progress
        began = time.perf_counter()
        batch = self._state.source.batch(progress.step + 1)
        arrived = time.perf_counter()
        result = self._train_step(
            progress.step + 1, batch, before_change=self._checkpointer.maybe_wait_for_staging
        )
        ended = time.perf_counter()
        progress.step += 1
        progress.samples += result.samples
        progress.tokens += result.tokens
        row = asdict(result)
        skipped = row.pop("skipped")
        if skipped is not None and self._world.is_rank_zero:
            self._logs.progress.message(f"{skipped}. The update is skipped", "warning")
        return {
            **row.pop("metrics"),
            **row,
            **({} if skipped is None else {"skipped_update": 1}),
            **batch.metrics,
            "tokens_per_second": result.tokens / (ended - arrived),
            "wait_seconds": arrived - began,
            "update_seconds": ended - arrived,
        }

    def _stop_requested(self) -> bool:
        """Whether any rank is asked to stop; all ranks get the same answer."""
        return bool(self._world.max(float(self._options.stop_requested())))
