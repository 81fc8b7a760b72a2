"""The training loop, the same for fine-tuning and reinforcement learning."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import asdict

from torchrl_ckpt.run.metrics import MetricsLog
from torchrl_ckpt.trainer.checkpointer import COMPONENT, Checkpointer
from torchrl_ckpt.trainer.distributed import World
from torchrl_ckpt.trainer.publisher import Publisher
from torchrl_ckpt.trainer.source import BatchSource
from torchrl_ckpt.trainer.state import TrainingState
from torchrl_ckpt.trainer.train_step import TrainStep, TrainStepResult

_log = logging.getLogger(__name__)


class Loop:
    """Runs the steps up to `max_steps`, or fewer where `stop_requested` says so.

    With `serving`, every step's policy is published for an orchestrator; without, the final model
    is kept if `keeping`.
    """

    def __init__(
        self,
        updater: TrainStep,
        source: BatchSource,
        state: TrainingState,
        metrics: MetricsLog,
        world: World,
        *,
        publisher: Publisher,
        serving: bool,
        keeping: bool,
        max_steps: int,
        checkpoints: Checkpointer | None,
        stop_requested: Callable[[], bool],
    ) -> None:
        self._updater = updater
        self._source = source
        self._state = state
        self._metrics = metrics
        self._world = world
        self._publisher = publisher
        self._serving = serving
        self._keeping = keeping
        self._max_steps = max_steps
        self._checkpoints = checkpoints
        self._stop_requested = stop_requested

    def run(self) -> None:
        """Train. Returns after the last step, with its checkpoint committed."""
        checkpoints = self._checkpoints
        if checkpoints is None:
            self._train()
            return
        checkpoints.prepare(self._state)
        try:
            self._train()
        except Exception:
            checkpoints.leave()
            raise
        checkpoints.finish()

    def _train(self) -> None:
        progress, max_steps = self._state.progress, self._max_steps
        if self._serving:
            self._publisher.publish(progress.step, last=False)
        while progress.step < max_steps:
            row = self._step(progress.step + 1)
            # Before the commit: a resume from this step finds its row.
            if self._world.leads:
                self._metrics.write(COMPONENT, progress.step, row)
            stopping = progress.step < max_steps and self._agreed_stop()
            self._show_and_save(last=stopping or progress.step == max_steps)
            if stopping:
                _log.warning("stopped after step %d of %d, as asked", progress.step, max_steps)
                return

    def _step(self, step: int) -> dict[str, float]:
        began = time.perf_counter()
        batch = self._source.batch(step)
        arrived = time.perf_counter()
        result = self._updater.update(batch.samples, batch.temperature)
        progress = self._state.progress
        progress.step = step
        progress.samples += result.samples
        progress.tokens += result.tokens
        ended = time.perf_counter()
        return {
            **_named(result),
            **batch.metrics,
            "tokens_per_second": result.tokens / (ended - arrived),
            "wait_seconds": arrived - began,
            "update_seconds": ended - arrived,
        }

    def _show_and_save(self, *, last: bool) -> None:
        """Publish and checkpoint, in the order that the orchestrator's part relies on."""
        step = self._state.progress.step
        checkpoints = self._checkpoints
        if checkpoints is not None:
            checkpoints.poll()
            if not (checkpoints.is_due(step, last=last) and checkpoints.request(step)):
                checkpoints = None
        # Before the commit: a checkpoint of the last step means that the final model is there.
        if self._serving:
            self._publisher.publish(step, last=last)
        elif self._keeping and step == self._max_steps:
            self._publisher.keep(step)
        if checkpoints is not None:
            checkpoints.save(step, self._state)

    def _agreed_stop(self) -> bool:
        """Whether any rank was asked to stop; all ranks get the same answer."""
        return bool(self._world.max(float(self._stop_requested())))


def _named(result: TrainStepResult) -> dict[str, float]:
    row = asdict(result)
    return row.pop("metrics") | row
