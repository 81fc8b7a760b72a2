"""The training loop, the same for supervised fine-tuning and reinforcement learning."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass

from torchrl_ckpt.checkpoint.layout import TRAINER
from torchrl_ckpt.plugin_api import heartbeat
from torchrl_ckpt.plugin_api.errors import NotFinite, WrongPolicy
from torchrl_ckpt.plugin_api.plugin import Json
from torchrl_ckpt.run.metrics import MetricsLog
from torchrl_ckpt.run.progress import ProgressLog
from torchrl_ckpt.trainer.checkpointer import Checkpointer, NullCheckpointer
from torchrl_ckpt.trainer.distributed import World
from torchrl_ckpt.trainer.publisher import Publisher
from torchrl_ckpt.trainer.source import TrainBatch
from torchrl_ckpt.trainer.state import TrainingState, rng_state
from torchrl_ckpt.trainer.train_step import TrainStep

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class LoopOptions:
    """When training ends, and which models it writes.

    `on_begin` is called when the first batch has come. With `publish_policies`, every step's
    policy, for the orchestrator to serve; else the final model if `export_weights`. Training ends
    after `max_steps`, or as soon as `stop_requested` returns true on any rank and no step is under
    way.
    """

    max_steps: int
    publish_policies: bool
    export_weights: bool
    stop_requested: Callable[[], bool]
    on_begin: Callable[[], None] = lambda: None


@dataclass(frozen=True)
class LoopLogs:
    """Where the loop writes what it has done; only rank 0 does."""

    metrics: MetricsLog
    progress: ProgressLog


@dataclass(frozen=True)
class _Arrived:
    """A batch, and how long training waited for it."""

    batch: TrainBatch
    wait_seconds: float


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
        if self._stop_requested():
            self._leave(rng_state(), None)
            return
        begun = False
        while state.progress.step < options.max_steps:
            heartbeat.beat()
            rng = rng_state()
            batch, failure = self._next_batch()
            if batch is None:
                self._leave(rng, failure)
                return
            if not begun:
                begun = True
                options.on_begin()
            try:
                row = self._step(batch)
            except (NotFinite, WrongPolicy):  # On all ranks, and no parameter has changed.
                state.source.put_back()
                if not state.changes_in_forward:
                    checkpointer.save_on_the_way_out(state.progress.step, state, rng)
                raise
            step = state.progress.step
            # Before the commit, so that a run resumed from this step finds the row.
            if self._world.is_rank_zero:
                self._logs.metrics.write(TRAINER, step, row)
            stopping = step < options.max_steps and self._stop_requested()
            last = stopping or step == options.max_steps
            heartbeat.beat()
            # The orchestrator's part of a checkpoint relies on this order: see
            # `Checkpointer.request`. A committed last step means that its model is there as well.
            checkpointer.request(step, last=last, leaving=stopping)
            if options.publish_policies:
                self._publisher.publish(step, last=last)
            elif options.export_weights and step == options.max_steps:
                self._publisher.export_final(step)
            heartbeat.beat()
            checkpointer.save(step, state)
            if stopping:
                _log.warning("stopped after step %d of %d, as requested", step, options.max_steps)
                return

    def _next_batch(self) -> tuple[_Arrived | None, Exception | None]:
        """The batch of the next step, on all ranks or on none; and why this rank has none."""
        batch, failure = None, None
        began = time.perf_counter()
        try:
            batch = self._state.source.batch(self._state.progress.step + 1)
        except Exception as error:
            failure = error
        if not self._world.max(float(batch is None)):
            assert batch is not None
            return _Arrived(batch, time.perf_counter() - began), None
        self._state.source.put_back()
        return None, failure

    def _leave(self, rng: Json, failure: Exception | None) -> None:
        """Save the last finished step, since no other one will follow it; raise `failure`."""
        step = self._state.progress.step
        self._checkpointer.save_on_the_way_out(step, self._state, rng)
        if failure is not None:
            raise failure
        if self._options.publish_policies:
            self._publisher.mark_last(step)
        _log.warning("stopped after step %d of %d", step, self._options.max_steps)

    def _step(self, arrived: _Arrived) -> dict[str, float]:
        """Do the next step; return its row of metrics."""
        progress, batch = self._state.progress, arrived.batch
        began = time.perf_counter()
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
            "tokens_per_second": result.tokens / (ended - began),
            "wait_seconds": arrived.wait_seconds,
            "update_seconds": ended - began,
        }

    def _stop_requested(self) -> bool:
        """Whether any rank is asked to stop; all ranks get the same answer."""
        return bool(self._world.max(float(self._options.stop_requested())))
