"""What is promised of a run's checkpoints, whatever happened to the process that saved them.

1. No committed step is lost.
2. What is listed is good: it verifies, and loads to the bit what was saved at that step.
3. A restart finds the newest of them, clears away what was left behind, and can save again.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path

from tests.support.toy_training import Rehearsal, SaveOptions, Snapshot, started_again
from torchrl_ckpt.checkpoint.layout import MANIFEST, Layout
from torchrl_ckpt.checkpoint.verify import verify
from torchrl_ckpt.plugin_api.errors import UserError
from torchrl_ckpt.trainer.distributed import World


class Promise:
    """Checks runs of rehearsals against what their states must be."""

    def __init__(self, world: World, scratch: Path) -> None:
        self._world = world
        self._scratch = scratch
        self._reference = cache(self._trained_to)
        self._proven: set[bytes] = set()

    def broken(
        self,
        run: Path,
        options: SaveOptions,
        *,
        must: Collection[int],
        may: Collection[int],
        damaged: int | None = None,
    ) -> list[str]:
        """How the promise is broken in `run`, which is resumed on the way.

        No steps but those of `may` can be listed, and those of `must` have to be after a restart,
        which may put one back that was about to be replaced. A step that is `damaged` may be
        listed before; the restart has to pass it by.
        """
        layout = Layout(run / "checkpoints")
        steps = [step for step in layout.steps() if step != damaged]
        faults = [f"step {step} was never committed" for step in steps if step not in may]
        for step in steps:
            faults += self._load(run, step, options)
        return [*faults, *self._restart(layout, options, must)]

    def _load(self, run: Path, step: int, options: SaveOptions) -> list[str]:
        directory = Layout(run / "checkpoints").step(step)
        try:
            verify(directory)
        except UserError as error:
            return [f"step {step} is listed and bad: {error}"]
        # Files that fit the same manifest are the same to the byte: one load speaks for all.
        manifest = (directory / MANIFEST).read_bytes()
        if manifest in self._proven:
            return []
        try:
            job = Rehearsal(run, self._world)
            job.restore(step, options)
        except Exception as error:
            return [f"step {step} verifies and does not load: {error!r}"]
        different = job.snapshot().differences(self._reference(step))
        if not different:
            self._proven.add(manifest)
        return [f"step {step} verifies and loads another {name}" for name in different]

    def _restart(
        self, layout: Layout, options: SaveOptions, must: Collection[int]
    ) -> Iterator[str]:
        run = layout.root.parent
        with started_again(run, options) as attempt:
            steps = layout.steps()
            yield from (f"step {step} is lost" for step in must if step not in steps)
            if (attempt.resume_step or 0) != max(steps, default=0):
                yield f"of the steps {steps} the restart took {attempt.resume_step}"
            for step in steps:
                yield from self._load(run, step, options)
            if left := layout.leftovers():
                yield f"the restart left {left[0].name} behind"
            job = Rehearsal(run, self._world)
            if attempt.resume_step:
                job.restore(attempt.resume_step, options)
            job.train_to(job.step + 1)
            # Whatever wrote the others; `dcp` needs no process that would have to start.
            checkpoints = job.checkpoints(replace(options, backend="dcp", backend_options={}))
            job.save(checkpoints)
            checkpoints.close()
        if job.step not in layout.steps():
            yield f"the restart could not save step {job.step}"
        else:
            yield from self._load(run, job.step, options)

    def _trained_to(self, step: int) -> Snapshot:
        job = Rehearsal(self._scratch / f"reference_{step}", self._world)
        job.train_to(step)
        return job.snapshot()
