"""Checkpoints as the training loop sees them: `load`, `request`, `save`, `maybe_wait_for_staging`,
`close`."""

from __future__ import annotations

import importlib.metadata
import logging
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future, wait
from dataclasses import asdict, dataclass
from functools import cache
from typing import Annotated, TypeVar

from pydantic import Field

from torchrl_ckpt.checkpoint.commit import check_space, request
from torchrl_ckpt.checkpoint.committer import Committer, CommitterProcess
from torchrl_ckpt.checkpoint.layout import STATE, TENSORS, TRAINER, Layout
from torchrl_ckpt.checkpoint.part import open_part
from torchrl_ckpt.checkpoint.rollout_part import ORCHESTRATOR, restore_policies
from torchrl_ckpt.checkpoint.stored_json import StoredModel, damage_unless_fit, read_stored
from torchrl_ckpt.plugin_api import heartbeat
from torchrl_ckpt.plugin_api.checkpoint_backends import CheckpointBackend, Save
from torchrl_ckpt.plugin_api.errors import CheckpointFailed, CheckpointMismatch
from torchrl_ckpt.plugin_api.plugin import Json
from torchrl_ckpt.run.attempt import Attempt
from torchrl_ckpt.run.metrics import MetricsLog
from torchrl_ckpt.run.progress import ProgressLog
from torchrl_ckpt.run.weight_store import WeightStore
from torchrl_ckpt.trainer.distributed import World, seed_everything
from torchrl_ckpt.trainer.finite_save import FiniteSave, first_nonfinite
from torchrl_ckpt.trainer.part_writer import PartWriter, TrainerPart
from torchrl_ckpt.trainer.save_failures import SaveFailures, catch_failure
from torchrl_ckpt.trainer.state import TrainingState, rng_state, set_rng_state

_REPORTED_WAIT_SECONDS = 1.0
_FINAL_WAIT_SECONDS = 60.0
_POLL_SECONDS = 0.5

T = TypeVar("T")

_log = logging.getLogger(__name__)


class Checkpointer:
    """Saves and loads the trainer's state, together with the parts of the other processes.

    `parts` names the processes that a checkpoint has a part of; `metadata` goes into its manifest.
    After each step the training loop calls `request`, publishes the policy, and calls `save`;
    whether a checkpoint is due is decided in here.

    With a backend that writes in the background, `save` returns before the checkpoint is committed.
    At most one save is in progress: the next `request` waits for it. Collectives of that save and
    of this thread can therefore share the checkpoint group, in the same order on every rank.

    Every method is collective. A failed save is handled as `ckpt.on_failure` says: with "stop",
    `request`, `save`, `finish` and `close` raise `CheckpointFailed`. They raise `RanksDisconnected`
    in any case. As a context manager it is closed at the end; after an exception it only waits a
    while for a save in progress, which is of a good step.
    """

    def __init__(
        self,
        attempt: Attempt,
        backend: CheckpointBackend,
        world: World,
        *,
        parts: tuple[str, ...],
        metadata: Mapping[str, Json],
        progress: ProgressLog,
        seed: int,
    ) -> None:
        assert attempt.ckpt is not None
        self._attempt = attempt
        self._interval = attempt.ckpt.interval
        self._layout = layout = Layout.of_run(attempt.output_dir, attempt.ckpt)
        self._backend = backend
        self._world = world
        self._parts = parts
        self._metadata = metadata
        self._metrics = MetricsLog(attempt.run.metrics)
        self._progress = progress
        self._seed = seed
        self._failures = SaveFailures(attempt.ckpt.on_failure, layout, world, progress)
        committer = Committer(attempt, layout, parts)
        self._committer_process = CommitterProcess(committer)
        commit = self._committer_process if backend.in_background else committer
        self._part_writer = PartWriter(world, self._failures, commit.commit, progress)
        self._num_bytes = 0
        self._stage_at_once = False
        self._requested: _Requested | None = None
        self._latest_begun: int | None = None
        self._in_progress: _InProgress | None = None

    def load(self, state: TrainingState) -> None:
        """Load the checkpoint to resume from, which the launcher has verified, into `state`.

        Does nothing for a fresh start. Raises `CheckpointMismatch`.
        """
        step = self._attempt.resume_step
        if step is None:
            return
        directory = self._layout.step(step) / TRAINER
        tensors = state.tensors()
        self._backend.load(tensors, directory / TENSORS, self._world.checkpoint_group)
        saved = read_stored(directory / STATE, _SavedState)
        with damage_unless_fit(directory / STATE):
            state.restore(tensors, saved.model_dump())
        if state.progress.step != step:
            raise CheckpointMismatch(f"{directory} is of step {state.progress.step}, not {step}")
        rng = directory / _rng_file(self._world.rank)
        if rng.exists():
            saved_rng = read_stored(rng, dict[str, Json])
            with damage_unless_fit(rng, RuntimeError):
                set_rng_state(saved_rng)
        else:
            # The checkpoint was saved by fewer ranks: this one gets a stream of its own.
            seed_everything(self._seed, (step << 16) + self._world.rank + 1)

    def restore_policies(self, weights: WeightStore) -> None:
        """Publish again the policies that the orchestrator still has to generate batches with."""
        if (step := self._attempt.resume_step) is not None:
            restore_policies(self._layout.step(step) / ORCHESTRATOR, weights, self._attempt.id)

    def prepare(self, state: TrainingState) -> None:
        """Set up what saves need, before the first step; some of it while the first steps run."""
        template = state.template()
        self._num_bytes = sum(t.numel() * t.element_size() for t in template.values())
        self._stage_at_once = state.changes_in_forward
        _versions()  # Looked up now, so that the first save need not.
        self._backend.prepare(template, self._world.checkpoint_group)
        self._start_committer()

    def request(self, step: int, *, last: bool, leaving: bool = False) -> bool:
        """Begin a checkpoint of `step` if one is due: ask the other processes for their parts.

        Call it before the policy of `step` is published: no process can then have gone beyond what
        belongs to this checkpoint when it sees the request. With `leaving` no other process is
        asked, and it may be called later as well: the parts are made of the run's files. Returns
        whether a checkpoint was begun.
        """
        self._note_end()
        due = last or (self._interval is not None and step % self._interval == 0)
        if not due:
            return False
        began = time.perf_counter()
        self.finish()
        waited = time.perf_counter() - began
        if waited > _REPORTED_WAIT_SECONDS and self._world.is_rank_zero:
            self._progress.message(
                f"checkpoint step_{step} waited {waited:.1f} s for the previous one"
            )
        with self._failures.agreed(step) as outcome:
            if self._world.is_rank_zero:
                check_space(self._layout.root, self._num_bytes)
                # No rank creates a directory later: it could fail where others wait for it.
                asked = (TRAINER,) if leaving else self._parts
                open_part(request(self._layout, step, asked), TRAINER)
        if outcome.succeeded:
            self._latest_begun = step
            self._requested = _Requested(step, time.perf_counter() - began)
        return outcome.succeeded

    def save_on_the_way_out(self, step: int, state: TrainingState, rng: Json) -> None:
        """Save `step`, after which the run has to leave, unless it is saved already.

        `rng` is the `rng_state` after the step. Returns once the checkpoint is committed; a failure
        is only reported, since the run leaves for another reason.
        """
        try:
            if step not in (0, self._attempt.resume_step, self._latest_begun) and (
                self.request(step, last=True, leaving=True)
            ):
                self.save(step, state, rng)
            self.finish()
        except CheckpointFailed as error:
            _log.warning("step %d could not be saved on the way out: %s", step, error)

    def save(self, step: int, state: TrainingState, rng: Json | None = None) -> None:
        """Save `state` and commit, if `request` has begun this step's checkpoint.

        `rng` is the `rng_state` to save; None: as it is now.

        With a backend that writes in the background, this returns before the state is copied: call
        `maybe_wait_for_staging` before the parameters change.
        """
        requested, self._requested = self._requested, None
        if requested is None:
            return
        assert requested.step == step
        began = time.perf_counter()
        directory = self._layout.partial(step) / TRAINER
        tensors, state_json = state.snapshot()
        json_files = {_rng_file(self._world.rank): rng_state() if rng is None else rng}
        if self._world.is_rank_zero:
            json_files[STATE] = state_json
        metadata = {
            **self._metadata,
            "progress": asdict(state.progress),
            "world_size": self._world.size,
            "versions": _versions(),
        }
        self._start_committer()
        save: Save | None = None
        # The check and the backend begin last: from then on their reading slows down this thread.
        nonfinite = run_in_background(lambda: first_nonfinite(tensors), name="finite numbers")
        with catch_failure() as outcome:
            begun = self._backend.save(tensors, directory / TENSORS, self._world.checkpoint_group)
            save = FiniteSave(begun, nonfinite)
        part = TrainerPart(step, began, directory, save, outcome, json_files, metadata)
        if not self._backend.in_background:
            metrics = self._part_writer.write_and_commit(part, self._num_bytes)
            self._report(step, metrics, requested.seconds + time.perf_counter() - began)
            return
        if save is not None and self._stage_at_once:
            save.wait_staged()
        metrics_later = run_in_background(
            lambda: self._part_writer.write_and_commit(part, self._num_bytes),
            name=f"checkpoint step_{step}",
        )
        stall = requested.seconds + time.perf_counter() - began
        self._in_progress = _InProgress(step, save, metrics_later, stall)

    def maybe_wait_for_staging(self) -> None:
        """Return once the parameters may change: the save in progress, if any, has copied them."""
        if self._in_progress is not None and self._in_progress.save is not None:
            began = time.perf_counter()
            self._in_progress.save.wait_staged()
            self._in_progress.stall += time.perf_counter() - began

    def finish(self) -> None:
        """Return once no save is in progress."""
        if self._in_progress is not None:
            ended, self._in_progress = self._in_progress, None
            while wait([ended.metrics], _POLL_SECONDS).not_done:
                heartbeat.beat()  # Those that it waits for have heartbeats of their own.
            self._report(ended.step, ended.metrics.result(), ended.stall)

    @property
    def in_progress(self) -> Future[dict[str, float]] | None:
        """The end of the save in progress, if there is one: what was measured, in seconds."""
        return self._in_progress.metrics if self._in_progress else None

    def close(self) -> None:
        """Wait for the save in progress and release processes and buffers."""
        self.finish()
        self._backend.close()
        self._committer_process.close()

    def __enter__(self) -> Checkpointer:
        return self

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        if error is None:
            self.close()
        elif isinstance(error, Exception) and self._in_progress is not None:
            wait([self._in_progress.metrics], _FINAL_WAIT_SECONDS)

    def _start_committer(self) -> None:
        if self._backend.in_background and self._world.is_rank_zero:
            self._committer_process.start()

    def _note_end(self) -> None:
        """Report a save that has ended.

        All ranks do so after the same step, since a failure may end the run.
        """
        if self._in_progress is None:
            return
        if not self._world.max(float(not self._in_progress.metrics.done())):
            self.finish()

    def _report(self, step: int, metrics: Mapping[str, float], stall: float) -> None:
        if metrics and self._world.is_rank_zero:
            row = {"stall_seconds": stall, **metrics}
            self._metrics.write(
                "checkpoint", step, {f"checkpoint/{name}": value for name, value in row.items()}
            )


class NullCheckpointer:
    """Takes the place of `Checkpointer` where checkpointing is off."""

    def load(self, state: TrainingState) -> None:
        pass

    def restore_policies(self, weights: WeightStore) -> None:
        pass

    def prepare(self, state: TrainingState) -> None:
        pass

    def request(self, step: int, *, last: bool, leaving: bool = False) -> bool:
        return False

    def save_on_the_way_out(self, step: int, state: TrainingState, rng: Json) -> None:
        pass

    def save(self, step: int, state: TrainingState) -> None:
        pass

    def maybe_wait_for_staging(self) -> None:
        pass

    def __enter__(self) -> NullCheckpointer:
        return self

    def __exit__(self, *error: object) -> None:
        pass


class _SavedState(StoredModel):
    """What `TrainingState.snapshot` returns besides the tensors."""

    progress: dict[str, Annotated[int, Field(ge=0)]]
    optimizer: dict[str, Json]
    scheduler: dict[str, Json]
    data: dict[str, Json]


@dataclass(frozen=True)
class _Requested:
    """A checkpoint that was begun. `seconds` is how long training stood still for it."""

    step: int
    seconds: float


@dataclass
class _InProgress:
    """A save beside the training. `stall` is how long training stood still for it, in seconds."""

    step: int
    save: Save | None
    metrics: Future[dict[str, float]]
    stall: float


def _rng_file(rank: int) -> str:
    """Return the name of the file with a rank's random generators, below the trainer's part."""
    return f"rng/rank_{rank}.json"


@cache
def _versions() -> dict[str, str]:
    return {
        name: importlib.metadata.version(name)
        for name in ("torchrl-ckpt", "torch", "transformers", "torchdata")
    }


def run_in_background(work: Callable[[], T], *, name: str) -> Future[T]:
    """Run `work` on a thread called `name`; return the future of its result.

    Unlike an executor's thread, this one does not keep a process alive that exits with an error.
    """
    future: Future[T] = Future()

    def run() -> None:
        try:
            future.set_result(work())
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=run, name=name, daemon=True).start()
    return future
