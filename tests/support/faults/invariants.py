"""The invariants of a run's checkpoints, whatever happened to the processes that saved them.

1. No committed step is lost.
2. Every listed step is good: it verifies and loads, to the bit, the state saved at that step.
3. A restart resumes from the newest good step, removes what was left behind and can save again.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path

from tests.support.toy_training import SaveOptions, Snapshot, ToyTraining, resumed_attempt
from torchrl_ckpt.checkpoint.layout import MANIFEST, Layout
from torchrl_ckpt.checkpoint.verify import verify
from torchrl_ckpt.plugin_api.errors import UserError
from torchrl_ckpt.trainer.distributed import World


class Invariants:
    """Checks runs of `ToyTraining` against the states that their steps must have."""

    def __init__(self, world: World, scratch: Path) -> None:
        self._world = world
        self._scratch = scratch
        self._expected = cache(self._trained_to)
        self._good_manifests: set[bytes] = set()

    def violations(
        self,
        run: Path,
        options: SaveOptions,
        *,
        required: Collection[int],
        allowed: Collection[int],
        damaged: int | None = None,
    ) -> list[str]:
        """Resume `run` and describe every violation.

        Before the restart only `allowed` steps may be listed, and after it all `required` ones must
        be: it may put back a step that was about to be replaced. The `damaged` step may be listed
        before, but the restart must not resume from it.
        """
        layout = Layout(run / "checkpoints")
        steps = [step for step in layout.steps() if step != damaged]
        found = [f"step {step} was never committed" for step in steps if step not in allowed]
        for step in steps:
            found += self._step_violations(run, step, options)
        return [*found, *self._restart_violations(layout, options, required)]

    def _step_violations(self, run: Path, step: int, options: SaveOptions) -> list[str]:
        directory = Layout(run / "checkpoints").step(step)
        try:
            verify(directory)
        except UserError as error:
            return [f"step {step} is listed and bad: {error}"]
        # Verified files with an equal manifest are equal to the byte, so one load covers them all.
        manifest = (directory / MANIFEST).read_bytes()
        if manifest in self._good_manifests:
            return []
        try:
            training = ToyTraining(run, self._world)
            training.restore(step, options)
        except Exception as error:
            return [f"step {step} verifies and does not load: {error!r}"]
        different = training.snapshot().differences(self._expected(step))
        if not different:
            self._good_manifests.add(manifest)
        return [f"step {step} verifies and loads another {name}" for name in different]

    def _restart_violations(
        self, layout: Layout, options: SaveOptions, required: Collection[int]
    ) -> Iterator[str]:
        run = layout.root.parent
        with resumed_attempt(run, options) as attempt:
            steps = layout.steps()
            yield from (f"step {step} is lost" for step in required if step not in steps)
            if attempt.resume_step != max(steps, default=None):
                yield f"of the steps {steps} the restart resumed from {attempt.resume_step}"
            for step in steps:
                yield from self._step_violations(run, step, options)
            if leftovers := layout.leftovers():
                yield f"the restart did not remove {leftovers[0].name}"
            training = ToyTraining(run, self._world)
            if attempt.resume_step is not None:
                training.restore(attempt.resume_step, options)
            training.train_to(training.step + 1)
            # `dcp` reads the files of either backend and needs no worker process.
            checkpointer = training.checkpointer(
                replace(options, backend="dcp", backend_options={})
            )
            training.save(checkpointer)
            checkpointer.close()
        if training.step not in layout.steps():
            yield f"the restart could not save step {training.step}"
        else:
            yield from self._step_violations(run, training.step, options)

    def _trained_to(self, step: int) -> Snapshot:
        training = ToyTraining(self._scratch / f"expected_{step}", self._world)
        training.train_to(step)
        return training.snapshot()
