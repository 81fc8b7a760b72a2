"""The start of a run: whose directory it is, what it goes on from, and what is set aside."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from torchrl_ckpt.checkpoint.commit import remove_leftovers
from torchrl_ckpt.checkpoint.layout import Layout
from torchrl_ckpt.checkpoint.resume import choose, refuse_to_overwrite
from torchrl_ckpt.errors import RecipeError, RunDirectoryInUse
from torchrl_ckpt.observe import metrics
from torchrl_ckpt.recipe.schema import Checkpointing
from torchrl_ckpt.run_directory import RunDirectory


@dataclass(frozen=True)
class Attempt:
    """A start of a run. `resumed_from` is the verified checkpoint's step, 0 for a fresh start."""

    run: RunDirectory
    resumed_from: int


@contextmanager
def begin(output_dir: Path, ckpt: Checkpointing | None, max_steps: int) -> Iterator[Attempt]:
    """Take the run's directory for this process and settle what to go on from.

    Nothing is written before it is clear that the run can start. Raises `RunDirectoryInUse`,
    `CheckpointNotFound`, `CheckpointDamaged` or `RecipeError`.
    """
    # Checkpoints count as the run's even where this start has not switched checkpointing on.
    config = ckpt or Checkpointing()
    layout = Layout(output_dir / config.directory)
    resumed_from = _resumed_from(layout, config, max_steps)
    output_dir.mkdir(parents=True, exist_ok=True)
    with _only_one(output_dir):
        remove_leftovers(layout, keep=())
        run = RunDirectory(output_dir, _next_attempt(output_dir))
        run.logs.mkdir(parents=True)
        after = resumed_from if config.resume_step is not None else -1
        metrics.truncate_after(run.metrics, after, backup=run.logs / "metrics.before.jsonl")
        yield Attempt(run, resumed_from)


def _resumed_from(layout: Layout, config: Checkpointing, max_steps: int) -> int:
    if config.resume_step is None:
        refuse_to_overwrite(layout)
        return 0
    step = choose(layout, config.resume_step).step
    if step >= max_steps:
        raise RecipeError(
            f"the checkpoint is of step {step} and `max_steps` is {max_steps}, so there is nothing "
            f"left to train; raise `--max-steps`"
        )
    return step


def _next_attempt(output_dir: Path) -> int:
    earlier = (output_dir / "logs").glob("attempt_*")
    return 1 + max((int(path.name.removeprefix("attempt_")) for path in earlier), default=0)


@contextmanager
def _only_one(output_dir: Path) -> Iterator[None]:
    """Hold the directory's lock, which the kernel releases however this process ends."""
    with open(output_dir / ".lock", "a+") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.seek(0)
            raise RunDirectoryInUse(
                f"{output_dir} is in use by another run (process {lock.read().strip()}); wait for "
                "it or choose another `--output-dir`"
            ) from None
        lock.truncate(0)
        lock.write(str(os.getpid()))
        lock.flush()
        yield
