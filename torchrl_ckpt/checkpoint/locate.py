"""Finds the checkpoints that a path on the command line stands for: a run's, or a single one."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from torchrl_ckpt.checkpoint.layout import MANIFEST, Layout
from torchrl_ckpt.checkpoint.resume import describe_steps
from torchrl_ckpt.config.ckpt import CheckpointConfig
from torchrl_ckpt.plugin_api.errors import CheckpointNotFound, DataError, OutsideDirectory
from torchrl_ckpt.plugin_api.untrusted_files import is_below
from torchrl_ckpt.run.attempt import Attempt
from torchrl_ckpt.run.directory import RunDirectory
from torchrl_ckpt.run.resolved import read_attempt


@dataclass(frozen=True)
class CheckpointLocation:
    """A checkpoint directory, and the run that it belongs to; None if that is unknown."""

    layout: Layout
    run: RunDirectory | None

    def checkpoint(self, step: int | None) -> Path:
        """Return the directory of `step`, or of the newest step if it is None.

        Raises `CheckpointNotFound`.
        """
        steps = self.layout.steps()
        if not steps:
            raise CheckpointNotFound(f"there is no checkpoint in {self.layout.root}")
        if step is None:
            return self.layout.step(steps[-1])
        if step not in steps:
            raise CheckpointNotFound(
                f"there is no checkpoint of step {step} in {self.layout.root}; "
                f"{describe_steps(steps)}"
            )
        return self.layout.step(step)


def find(path: Path) -> CheckpointLocation:
    """Find the checkpoints of a run's directory, or those in a checkpoint directory.

    What is found is below `path`: the run's files, which somebody else may have made, cannot choose
    another place. Raises `CheckpointNotFound` for a path that is neither, `OutsideDirectory` for a
    run whose checkpoints are elsewhere, and `DataError` for a `resolved.json` that cannot be read.
    """
    if not path.is_dir():
        raise CheckpointNotFound(f"{path} is not a directory")
    run = RunDirectory(path, attempt=0)
    layout = _layout(run)
    if run.resolved.is_file() or layout.root.is_dir():
        if not is_below(path, layout.root):
            raise OutsideDirectory(
                f"the checkpoints of the run in {path} are outside of it, in {layout.root}, as "
                f"{run.resolved} or a link says. A file that was read does not decide which "
                "directory is used: if it is the right one, give it in place of the run's "
                "directory (`ckpt prune` takes both: `RUN --checkpoints DIRECTORY`)"
            )
        return CheckpointLocation(layout, run)
    layout, above = Layout(path), RunDirectory(path.absolute().parent, attempt=0)
    if not (layout.named() or layout.leftovers() or layout.quarantined()):
        raise CheckpointNotFound(
            f"{path} is neither a run's directory nor a checkpoint directory: it has no "
            f"{run.resolved.name}, no {_layout(run).root.name} and no step"
        )
    return CheckpointLocation(layout, above if _is_of(above, path) else None)


def _is_of(run: RunDirectory, path: Path) -> bool:
    """Whether `path` is the checkpoint directory of `run`."""
    try:
        return _layout(run).root.resolve() == path.resolve()
    except (DataError, OSError, RuntimeError, ValueError):
        return False


def find_one(path: Path, step: int | None) -> Path:
    """Return `path` if it is itself a checkpoint, else the checkpoint of `step` of the run there.

    `step` None is the newest. Raises `CheckpointNotFound`.
    """
    return path if is_checkpoint(path) and step is None else find(path).checkpoint(step)


def is_checkpoint(path: Path) -> bool:
    """Whether `path` is itself a checkpoint, even one that has lost its manifest."""
    return (path / MANIFEST).is_file() or path.absolute() in Layout(
        path.absolute().parent
    ).named().values()


def latest_attempt(run: RunDirectory) -> Attempt | None:
    """Read the latest start of the run; None if it has no `resolved.json`."""
    return read_attempt(run.resolved) if run.resolved.is_file() else None


def _layout(run: RunDirectory) -> Layout:
    attempt = latest_attempt(run)
    ckpt = attempt.ckpt if attempt is not None else None
    return Layout.of_run(run.root, ckpt or CheckpointConfig())
