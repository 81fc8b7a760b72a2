"""What a path on the command line means: a run, its checkpoints, or one of them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from torchrl_ckpt.checkpoint.layout import MANIFEST, Layout
from torchrl_ckpt.checkpoint.resume import listed
from torchrl_ckpt.config.ckpt import CheckpointConfig
from torchrl_ckpt.plugin_api.errors import CheckpointNotFound
from torchrl_ckpt.run.attempt import Attempt
from torchrl_ckpt.run.directory import RunDirectory
from torchrl_ckpt.run.resolved import read_attempt


@dataclass(frozen=True)
class CheckpointLocation:
    """Where checkpoints are. `run` is None where it is not known whose they are."""

    layout: Layout
    run: RunDirectory | None

    def one(self, step: int | None) -> Path:
        """The directory of `step`, of the newest where it is None. Raises `CheckpointNotFound`."""
        steps = self.layout.steps()
        if not steps:
            raise CheckpointNotFound(f"there is no checkpoint in {self.layout.root}")
        if step is None:
            return self.layout.step(steps[-1])
        if step not in steps:
            raise CheckpointNotFound(
                f"there is no checkpoint of step {step} in {self.layout.root}; {listed(steps)}"
            )
        return self.layout.step(step)


def find(where: Path) -> CheckpointLocation:
    """The checkpoints of a run's directory, or of the checkpoint directory itself.

    Raises `CheckpointNotFound` for a path that is neither.
    """
    if not where.is_dir():
        raise CheckpointNotFound(f"{where} is not a directory")
    run = RunDirectory(where, attempt=0)
    layout = _layout(run)
    if run.resolved.is_file() or layout.root.is_dir():
        return CheckpointLocation(layout, run)
    layout, above = Layout(where), RunDirectory(where.absolute().parent, attempt=0)
    if not (layout.named() or layout.leftovers() or layout.quarantined()):
        raise CheckpointNotFound(
            f"{where} is neither a run's directory nor one of checkpoints: it holds no "
            f"{run.resolved.name}, no {_layout(run).root.name} and no step"
        )
    is_of_run = _layout(above).root.resolve() == where.resolve()
    return CheckpointLocation(layout, above if is_of_run else None)


def find_one(where: Path, step: int | None) -> Path:
    """The checkpoint at `where` itself, or of `step` (None: the newest) of the run there."""
    return where if is_checkpoint(where) and step is None else find(where).one(step)


def is_checkpoint(where: Path) -> bool:
    """Whether `where` is itself one checkpoint, be it one that has lost its manifest."""
    return (where / MANIFEST).is_file() or where.absolute() in Layout(
        where.absolute().parent
    ).named().values()


def latest_attempt(run: RunDirectory) -> Attempt | None:
    """The latest start of the run; None where `resolved.json` is not there."""
    return read_attempt(run.resolved) if run.resolved.is_file() else None


def _layout(run: RunDirectory) -> Layout:
    attempt = latest_attempt(run)
    ckpt = attempt.ckpt if attempt is not None else None
    return Layout.of_run(run.root, ckpt or CheckpointConfig())
