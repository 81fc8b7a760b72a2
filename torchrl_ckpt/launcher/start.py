"""The start of a run: whose directory it is, what it goes on from, and what is set aside."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from torchrl_ckpt.checkpoint.commit import recover
from torchrl_ckpt.checkpoint.fork import fork
from torchrl_ckpt.checkpoint.layout import Layout
from torchrl_ckpt.checkpoint.locate import find
from torchrl_ckpt.checkpoint.manifest import Manifest
from torchrl_ckpt.checkpoint.resume import choose, refuse_to_overwrite, set_aside_after
from torchrl_ckpt.config.ckpt import CheckpointConfig
from torchrl_ckpt.launcher.recipe_diff import notes_on_resume
from torchrl_ckpt.plugin_api.errors import RecipeError, RunDirectoryInUse
from torchrl_ckpt.plugin_api.plugin import Json
from torchrl_ckpt.run import metrics
from torchrl_ckpt.run.directory import RunDirectory


@dataclass(frozen=True)
class Attempt:
    """A start of a run. `resumed_from` is the verified checkpoint's step, 0 for a fresh start;
    `notes` are what the user should know about it."""

    run: RunDirectory
    resumed_from: int
    notes: list[str]


@contextmanager
def begin(
    output_dir: Path, ckpt: CheckpointConfig | None, max_steps: int, recipe: Json
) -> Iterator[Attempt]:
    """Take the run's directory for this process and settle what to go on from.

    Nothing is overwritten before it is clear that the run can start. Raises `RunDirectoryInUse`,
    `CheckpointNotFound`, `CheckpointDamaged`, `CheckpointMismatch` or `RecipeError`.
    """
    # Checkpoints count as the run's even where this start has not switched checkpointing on.
    config = ckpt or CheckpointConfig()
    layout = Layout(output_dir / config.directory)
    output_dir.mkdir(parents=True, exist_ok=True)
    with only_one(output_dir):
        recover(layout)
        notes: list[str] = []
        manifest = _checkpoint(layout, config)
        if manifest is not None:
            _check_something_left(manifest.step, max_steps)
            notes = notes_on_resume(manifest, recipe)
            set_aside_after(layout, manifest.step)
            if config.resume_from is not None:
                fork(find(config.resume_from).layout.step(manifest.step), layout)
        run = RunDirectory(output_dir, _next_attempt(output_dir))
        run.logs.mkdir(parents=True)
        after = manifest.step if manifest is not None else -1
        metrics.truncate_after(run.metrics, after, backup=run.logs / "metrics.before.jsonl")
        yield Attempt(run, max(after, 0), notes)


def _checkpoint(layout: Layout, config: CheckpointConfig) -> Manifest | None:
    """The verified checkpoint to go on from; None for a fresh start."""
    if config.resume_from is not None:
        refuse_to_overwrite(layout)
        source = find(config.resume_from).layout
        return choose(source, config.resume_step or "latest", quarantine=False)
    if config.resume_step is not None:
        return choose(layout, config.resume_step)
    refuse_to_overwrite(layout)
    return None


def _check_something_left(step: int, max_steps: int) -> None:
    if step >= max_steps:
        raise RecipeError(
            f"the checkpoint is of step {step} and `max_steps` is {max_steps}, so there is nothing "
            "left to train; raise `--max-steps`"
        )


def _next_attempt(output_dir: Path) -> int:
    earlier = (output_dir / "logs").glob("attempt_*")
    return 1 + max((int(path.name.removeprefix("attempt_")) for path in earlier), default=0)


@contextmanager
def only_one(output_dir: Path) -> Iterator[None]:
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
