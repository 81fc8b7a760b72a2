"""The trainer's part of a checkpoint, from the state in the backend's hands to the commit."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from torchrl_ckpt.checkpoint.layout import TENSORS
from torchrl_ckpt.plugin_api.checkpoint_backends import Advance, FileRecord, Save, Written
from torchrl_ckpt.plugin_api.durable_files import record_json
from torchrl_ckpt.plugin_api.plugin import Json
from torchrl_ckpt.run.progress import ProgressLog
from torchrl_ckpt.trainer.distributed import World
from torchrl_ckpt.trainer.save_failures import Outcome, SaveFailures

Commit = Callable[[int, Sequence[FileRecord], Mapping[str, Json]], float]
"""Commits the checkpoint of a step with the trainer's files and the manifest's metadata; returns
the seconds that it waited for the other processes' parts."""


@dataclass(frozen=True)
class TrainerPart:
    """One rank's part of a checkpoint: everything as it was after its step.

    `began` is on `time.perf_counter`. `save` is None where the backend failed to begin it;
    `outcome` says why. `json_files` are this rank's other files, by name below `directory`.
    """

    step: int
    began: float
    directory: Path
    save: Save | None
    outcome: Outcome
    json_files: Mapping[str, Json]
    metadata: Mapping[str, Json]


class PartWriter:
    """Finishes a rank's part and, on rank 0, has the checkpoint committed."""

    def __init__(
        self, world: World, failures: SaveFailures, commit: Commit, progress: ProgressLog
    ) -> None:
        self._world = world
        self._failures = failures
        self._commit = commit
        self._progress = progress

    def write_and_commit(self, part: TrainerPart, num_bytes: int) -> dict[str, float]:
        """Write what is left of `part`, wait until it is durable, and commit.

        `num_bytes` is the size of all ranks' tensors. Returns what was measured, in seconds;
        nothing where the save failed. Collective, on whichever thread. Raises what
        `SaveFailures.agreed` raises.
        """
        written, waited = Written([]), 0.0
        with self._progress_of(part.step, num_bytes) as advance:
            with self._failures.agreed(part.step, part.outcome) as outcome:
                written = self._write(part, advance)
            written_at = time.perf_counter()
            if outcome.succeeded:
                files = self._gather(written.files)
                with self._failures.agreed(part.step) as outcome:
                    waited = self._commit_all(part, files)
        if not outcome.succeeded:
            return {}
        ended = time.perf_counter()
        return {
            **written.metrics,
            "parts_seconds": waited,
            "commit_seconds": ended - written_at - waited,
            "total_seconds": ended - part.began,
        }

    def _write(self, part: TrainerPart, advance: Advance) -> Written:
        """Write this rank's files and return their records once they are durable."""
        if part.save is None:
            return Written([])
        tensors = part.save.wait_written(advance)
        files = [replace(file, path=f"{TENSORS}/{file.path}") for file in tensors.files]
        files += [record_json(part.directory, name, v) for name, v in part.json_files.items()]
        return Written(files, tensors.metrics)

    def _gather(self, files: Sequence[FileRecord]) -> list[FileRecord]:
        """Return the files of all ranks."""
        gathered = self._world.gather([asdict(file) for file in files])
        return [FileRecord(**file) for of_rank in gathered for file in of_rank]

    def _commit_all(self, part: TrainerPart, files: Sequence[FileRecord]) -> float:
        """Commit on rank 0; return the seconds that it waited for other processes' parts."""
        if not self._world.is_rank_zero:
            return 0.0
        waited = self._commit(part.step, files, part.metadata)
        self._progress.message(f"checkpoint step_{part.step} committed")
        return waited

    @contextmanager
    def _progress_of(self, step: int, num_bytes: int) -> Iterator[Advance]:
        """Show the save as a task. Rank 0 shows its own bytes, which stand for those of all."""
        if not self._world.is_rank_zero:
            yield lambda _: None
            return
        total = num_bytes // self._world.size
        with self._progress.task(f"checkpoint step_{step}", total=total, unit="bytes") as task:
            done = 0

            def advance(count: int) -> None:
                nonlocal done
                done += count
                task.update(min(done, total))

            yield advance
