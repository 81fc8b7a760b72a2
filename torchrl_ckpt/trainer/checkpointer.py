"""The trainer's side of a checkpoint: it decides that one is due, writes its part, commits."""

from __future__ import annotations

import importlib.metadata
import logging
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, wait
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

from torchrl_ckpt.checkpoint.commit import check_space, request
from torchrl_ckpt.checkpoint.committer import Committer
from torchrl_ckpt.checkpoint.layout import STATE, TENSORS, TRAINER, Layout
from torchrl_ckpt.checkpoint.part import open_part
from torchrl_ckpt.checkpoint.retention import is_due
from torchrl_ckpt.config.ckpt import CheckpointConfig
from torchrl_ckpt.plugin_api.checkpoint_backends import (
    Advance,
    CheckpointBackend,
    FileRecord,
    Save,
    Written,
)
from torchrl_ckpt.plugin_api.durable_files import fsync_directory, read_json, record_json
from torchrl_ckpt.plugin_api.errors import CheckpointMismatch, WorkerProcessDied
from torchrl_ckpt.plugin_api.plugin import Json
from torchrl_ckpt.plugin_api.worker_process import WorkerProcess
from torchrl_ckpt.run import logs
from torchrl_ckpt.run.metrics import MetricsLog
from torchrl_ckpt.run.progress import ProgressLog
from torchrl_ckpt.trainer.distributed import World, seed_everything
from torchrl_ckpt.trainer.save_failures import Outcome, SaveFailures, failure_of_this_rank
from torchrl_ckpt.trainer.state import TrainingState, rng_state, set_rng_state

COMPONENT = TRAINER

_REPORTED_WAIT_SECONDS = 1.0
_FAREWELL_SECONDS = 60.0

_log = logging.getLogger(__name__)


class Checkpointer:
    """Saves and restores `TrainingState`, together with the other processes' parts.

    `parts` names the processes whose state a checkpoint holds; `about` goes into its manifest.

    With a backend that writes in the background, a save goes on after `save` has returned, and at
    most one does: the next `request` waits for it. Collectives of the save under way and of this
    thread can therefore share the checkpoint's group, in the same order on every rank.
    """

    def __init__(
        self,
        config: CheckpointConfig,
        layout: Layout,
        backend: CheckpointBackend,
        world: World,
        *,
        parts: tuple[str, ...],
        about: Mapping[str, Json],
        metrics: Path,
        progress: ProgressLog,
        seed: int,
    ) -> None:
        self._config = config
        self._layout = layout
        self._backend = backend
        self._world = world
        self._parts = parts
        self._about = about
        self._metrics = MetricsLog(metrics)
        self._progress = progress
        self._seed = seed
        self._num_bytes = 0
        self._stage_at_once = False
        self._failures = SaveFailures(config.on_failure, layout, world, progress)
        self._commitment = Committer(config, layout, parts, metrics)
        self._committer = WorkerProcess("checkpoint committer", (logs.configure, ()))
        self._request_seconds = 0.0
        self._under_way: _UnderWay | None = None

    def prepare(self, state: TrainingState) -> None:
        """Make ready what saves will need, while the first steps run; collective."""
        form = state.form()
        self._num_bytes = sum(t.numel() * t.element_size() for t in form.values())
        self._stage_at_once = state.changes_in_forward
        _versions()  # Looked up once, and not when the first save has training wait.
        self._backend.prepare(form, self._world.checkpoint_group)
        if self._backend.in_background and self._world.leads:
            self._committer.start()

    def is_due(self, step: int, *, last: bool) -> bool:
        return is_due(step, interval=self._config.interval, last=last)

    def request(self, step: int) -> bool:
        """Ask the other processes for their parts; False where no checkpoint can be begun.

        This comes before the policy of `step` is published: no process can then have gone beyond
        what belongs to this checkpoint when it sees the request.
        """
        began = time.perf_counter()
        self.finish()
        waited = time.perf_counter() - began
        if waited > _REPORTED_WAIT_SECONDS and self._world.leads:
            self._progress.message(
                f"checkpoint step_{step} waited {waited:.1f} s for the one before it"
            )
        with self._failures.agreed(step) as outcome:
            if self._world.leads:
                check_space(self._layout.root, self._num_bytes)
                # No rank makes a directory later on: it could fail where others wait for it.
                open_part(request(self._layout, step, self._parts), COMPONENT)
        self._request_seconds = time.perf_counter() - began
        return outcome.good

    def save(self, step: int, state: TrainingState) -> None:
        """Write this process's part and commit, or begin to, as the backend does it."""
        began = time.perf_counter()
        directory = self._layout.partial(step) / COMPONENT
        tensors, plain = state.snapshot()
        rng = rng_state()
        about = {
            **self._about,
            "progress": asdict(state.progress),
            "world_size": self._world.size,
            "versions": _versions(),
        }
        if self._world.leads and self._backend.in_background:
            with suppress(OSError):  # Then the call to it fails, and with it the save.
                self._committer.start()  # Does nothing where it is alive.
        # The last thing, since what comes after a backend has begun to copy is slowed by that.
        save: Save | None = None
        with failure_of_this_rank() as outcome:
            save = self._backend.save(tensors, directory / TENSORS, self._world.checkpoint_group)
        part = _Part(step, began, directory, save, outcome, plain, rng, about)
        if not self._backend.in_background:
            metrics = self._write_and_commit(part)
            self._report(step, metrics, self._request_seconds + time.perf_counter() - began)
            return
        if save is not None and self._stage_at_once:
            save.wait_staged()
        work = in_background(f"checkpoint step_{step}", lambda: self._write_and_commit(part))
        stall = self._request_seconds + time.perf_counter() - began
        self._under_way = _UnderWay(step, save, work, stall)

    def wait_staged(self) -> None:
        """Return once the parameters may change: before every update."""
        if self._under_way is not None and self._under_way.save is not None:
            began = time.perf_counter()
            self._under_way.save.wait_staged()
            self._under_way.stall += time.perf_counter() - began

    def poll(self) -> None:
        """Take note of a save that has ended. Raises where it failed and was to stop the run."""
        if self._under_way is None:
            return
        # All ranks at the same step, since a failure may end the run.
        if not self._world.max(float(not self._under_way.work.done())):
            self.finish()

    def finish(self) -> None:
        """Return once no save is under way. Raises where it failed and was to stop the run."""
        if self._under_way is not None:
            ended, self._under_way = self._under_way, None
            self._report(ended.step, ended.work.result(), ended.stall)

    def leave(self) -> None:
        """Training has failed. The save under way was of a good step: let it come to its end."""
        if self._under_way is not None:
            wait([self._under_way.work], _FAREWELL_SECONDS)

    def restore(self, state: TrainingState) -> None:
        """Load the step that `resume_step` names; the runner has verified it."""
        step = self._config.resume_step
        assert isinstance(step, int)
        directory = self._layout.step(step) / COMPONENT
        tensors = state.tensors()
        self._backend.load(tensors, directory / TENSORS, self._world.checkpoint_group)
        state.restore(tensors, read_json(directory / STATE))
        if state.progress.step != step:
            raise CheckpointMismatch(f"{directory} says it is of step {state.progress.step}")
        rng = directory / _rng_name(self._world.rank)
        if rng.exists():
            set_rng_state(read_json(rng))
        else:
            # More ranks than before: a new rank has no past to go on from.
            seed_everything(self._seed, (step << 16) + self._world.rank + 1)

    @property
    def under_way(self) -> Future[dict[str, float]] | None:
        """The save that goes on beside the training, if one does."""
        return self._under_way.work if self._under_way else None

    def close(self) -> None:
        """Bring the save under way to its end, and give everything back."""
        self.finish()
        self._backend.close()
        self._committer.close()

    def _write_and_commit(self, part: _Part) -> dict[str, float]:
        """What is left to do once the state is in the backend's hands; returns what was measured,
        nothing where it failed. Collective, on whichever thread."""
        written, waited = Written([]), 0.0
        with self._shown(part.step) as advance:
            with self._failures.agreed(part.step, part.outcome) as outcome:
                written = self._write(part, advance)
            written_at = time.perf_counter()
            if outcome.good:
                with self._failures.agreed(part.step) as outcome:
                    waited = self._commit(part, written.files)
        if not outcome.good:
            return {}
        ended = time.perf_counter()
        return {
            **written.metrics,
            "parts_seconds": waited,
            "commit_seconds": ended - written_at - waited,
            "total_seconds": ended - part.began,
        }

    def _write(self, part: _Part, advance: Advance) -> Written:
        """Write this rank's files and say what was written, once it is durable."""
        if part.save is None:
            return Written([])
        tensors = part.save.wait_written(advance)
        files = [replace(file, path=f"{TENSORS}/{file.path}") for file in tensors.files]
        files.append(record_json(part.directory, _rng_name(self._world.rank), part.rng))
        if self._world.leads:
            files.append(record_json(part.directory, STATE, part.plain))
        return Written(files, tensors.metrics)

    def _commit(self, part: _Part, files: Sequence[FileRecord]) -> float:
        """Commit; returns the seconds that other processes' parts were waited for."""
        gathered = self._world.gather(list(files))
        if not self._world.leads:
            return 0.0
        everything = [file for share in gathered for file in share]
        if self._backend.in_background:
            waited = self._commit_elsewhere(part, everything)
        else:
            waited = self._commitment.commit(part.step, everything, part.about)
        self._progress.message(f"checkpoint step_{part.step} committed")
        return waited

    def _commit_elsewhere(self, part: _Part, files: list[FileRecord]) -> float:
        commit: Callable[..., float] = Committer.commit
        try:
            return self._committer.call(commit, self._commitment, part.step, files, part.about)
        except WorkerProcessDied as death:
            # Before the one rename that counts, or after it?
            layout, step = self._layout, part.step
            if layout.partial(step).exists() or not layout.step(step).exists():
                raise
            fsync_directory(layout.root)
            _log.warning("%s, when it had committed step_%d", death, step)
            return 0.0

    @contextmanager
    def _shown(self, step: int) -> Iterator[Advance]:
        """Show the save to who watches: rank 0 shows its own bytes."""
        if not self._world.leads:
            yield lambda _: None
            return
        total = self._num_bytes // self._world.size
        with self._progress.task(f"checkpoint step_{step}", total=total, unit="bytes") as task:
            done = 0

            def advance(count: int) -> None:
                nonlocal done
                done += count
                task.update(min(done, total))

            yield advance

    def _report(self, step: int, metrics: Mapping[str, float], stall: float) -> None:
        if metrics and self._world.leads:
            row = {"stall_seconds": stall, **metrics}
            self._metrics.write(
                "checkpoint", step, {f"checkpoint/{name}": value for name, value in row.items()}
            )


@dataclass(frozen=True)
class _Part:
    """This rank's part of a checkpoint: everything of the moment of its step.

    It was `began` on `time.perf_counter`. `save` is None where it could not be begun; `outcome`
    says why.
    """

    step: int
    began: float
    directory: Path
    save: Save | None
    outcome: Outcome
    plain: Json
    rng: Json
    about: Mapping[str, Any]


@dataclass
class _UnderWay:
    """A save that goes on beside the training. `stall` is how long training stood still for it."""

    step: int
    save: Save | None
    work: Future[dict[str, float]]
    stall: float


def _rng_name(rank: int) -> str:
    return f"rng/rank_{rank}.json"


@cache
def _versions() -> dict[str, str]:
    return {
        name: importlib.metadata.version(name)
        for name in ("torchrl-ckpt", "torch", "transformers", "torchdata")
    }


T = TypeVar("T")


def in_background(name: str, work: Callable[[], T]) -> Future[T]:
    """Begin `work` on a thread called `name`; the future gets what it returns or raises.

    Unlike an executor's, the thread does not hold up a process that leaves because of an error.
    """
    future: Future[T] = Future()

    def run() -> None:
        try:
            future.set_result(work())
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=run, name=name, daemon=True).start()
    return future
