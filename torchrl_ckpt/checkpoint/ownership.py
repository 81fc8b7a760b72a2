"""Whose a checkpoint directory is: one run's, which is named in it and locks it while it works.

A run's `ckpt.directory` may be any place, and two runs in one place would clear away and replace
each other's checkpoints. `.owner.json` names the run, and `.lock` keeps others out.
"""

from __future__ import annotations

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from torchrl_ckpt.checkpoint.layout import Layout
from torchrl_ckpt.checkpoint.manifest import read_manifest
from torchrl_ckpt.checkpoint.stored_json import StoredModel, read_stored
from torchrl_ckpt.plugin_api.durable_files import make_directory, write_json
from torchrl_ckpt.plugin_api.errors import (
    CheckpointDamaged,
    CheckpointMismatch,
    RunDirectoryDamaged,
    RunDirectoryInUse,
    RunDirectoryUnwritable,
)
from torchrl_ckpt.plugin_api.untrusted_files import is_below
from torchrl_ckpt.run.directory import read_run_id
from torchrl_ckpt.run.file_lock import LockFile

_OWNER = ".owner.json"
_LOCK = ".lock"
_CLAIMING = ".lock.claiming"

_REMEDY = (
    "Choose another `ckpt.directory`; to go on from one of these checkpoints, add "
    "`--ckpt.resume-from {0}`, or copy it with `torchrl-ckpt ckpt fork`"
)


class Owner(StoredModel):
    """The run that a checkpoint directory belongs to.

    `inode` is the directory's: a copy of the directory has another one, and belongs to nobody yet.
    """

    run_id: str
    output_dir: str
    inode: int


@contextmanager
def owned(layout: Layout, output_dir: Path, run_id: str) -> Iterator[None]:
    """Keep others out of the checkpoint directory, which belongs to this run from now on.

    It is created if need be. Raises `RunDirectoryInUse` where it is another run's or in use,
    `RunDirectoryUnwritable`, and `CheckpointDamaged` for an owner that cannot be read.
    """
    with _locked(layout, fcntl.LOCK_EX, output_dir):
        _claim(layout, output_dir, run_id)
        yield


@contextmanager
def shared(layout: Layout, output_dir: Path, run_id: str) -> Iterator[None]:
    """As `owned`, but other components of the same run that were started by hand may enter too."""
    with _locked(layout, fcntl.LOCK_SH, output_dir):
        # Components of two runs may both be here: one claims it, and the other one is refused.
        with LockFile(layout.root / _CLAIMING) as claiming:
            claiming.wait()
            _claim(layout, output_dir, run_id)
        yield


@contextmanager
def locked_for_removal(layout: Layout, run_root: Path) -> Iterator[None]:
    """Keep everybody out of the checkpoint directory of the run in `run_root`.

    Raises as `owned` does, and `RunDirectoryDamaged`.
    """
    with _locked(layout, fcntl.LOCK_EX, run_root):
        owner, run_id = _owner(layout), read_run_id(run_root)
        if owner is not None and run_id is not None and owner.run_id != run_id:
            raise _of_another(layout, owner)
        yield


def _claim(layout: Layout, output_dir: Path, run_id: str) -> None:
    if _is_of(layout, output_dir, run_id):
        return
    inode = layout.root.stat().st_ino
    owner = Owner(run_id=run_id, output_dir=str(output_dir.resolve()), inode=inode)
    write_json(layout.root / _OWNER, owner.model_dump())


def _is_of(layout: Layout, output_dir: Path, run_id: str) -> bool:
    """Whether the directory is the run's; False where the run may claim it.

    Raises `RunDirectoryInUse` where it is another one's, or may be.
    """
    owner, own_path = _owner(layout), str(output_dir.resolve())
    if owner is None:
        if not is_below(output_dir, layout.root):
            _check_unclaimed(layout, own_path)
        return False
    if owner.run_id != run_id:
        if owner.output_dir != own_path:
            raise _of_another(layout, owner)
        return False  # The run that was in this `output_dir` before has lost its identity.
    if owner.output_dir == own_path:
        return True
    if _has_identity(Path(owner.output_dir), run_id):
        raise RunDirectoryInUse(
            f"{layout.root} holds the checkpoints of the run in {owner.output_dir}, of which "
            f"{output_dir} is a copy. Give the copy a `ckpt.directory` of its own"
        )
    return False  # The run's directory was moved.


def _has_identity(root: Path, run_id: str) -> bool:
    try:
        return read_run_id(root) == run_id
    except (OSError, RunDirectoryDamaged):
        return False


def _owner(layout: Layout) -> Owner | None:
    """The owner on record; None without one, and in a copy of a directory."""
    try:
        owner = read_stored(layout.root / _OWNER, Owner, max_bytes=64 * 1024)
    except FileNotFoundError:
        return None
    return owner if owner.inode == layout.root.stat().st_ino else None


def _check_unclaimed(layout: Layout, own_path: str) -> None:
    """Raise `RunDirectoryInUse` for checkpoints that another run has saved, or may have saved.

    The directory has no owner on record.
    """
    if (layout.leftovers() or layout.quarantined()) and not layout.named():
        raise _unknown(layout)
    for path in layout.named().values():
        try:
            attempt = read_manifest(path).metadata.get("attempt")
        except (CheckpointDamaged, CheckpointMismatch):
            raise _unknown(layout) from None
        saved_by = attempt.get("output_dir") if isinstance(attempt, dict) else None
        if not isinstance(saved_by, str) or str(Path(saved_by).resolve()) != own_path:
            raise _unknown(layout)


def _unknown(layout: Layout) -> RunDirectoryInUse:
    return RunDirectoryInUse(
        f"{layout.root} holds checkpoints that may be another run's: nothing in it says whose they "
        f"are. {_REMEDY.format(layout.root)}"
    )


def _of_another(layout: Layout, owner: Owner) -> RunDirectoryInUse:
    return RunDirectoryInUse(
        f"{layout.root} holds the checkpoints of another run, the one in {owner.output_dir}. "
        f"{_REMEDY.format(layout.root)}"
    )


@contextmanager
def _locked(layout: Layout, kind: int, output_dir: Path) -> Iterator[None]:
    try:
        make_directory(layout.root)
        lock = LockFile(layout.root / _LOCK)
    except OSError as error:
        raise RunDirectoryUnwritable(
            f"cannot write to the checkpoint directory {layout.root}: {error.strerror}. Choose "
            "another `ckpt.directory`, or make this one writable"
        ) from error
    with lock:
        if not lock.take(kind):
            holder = lock.holder()
            where = f" by the run in {holder}" if holder else ""
            raise RunDirectoryInUse(
                f"the checkpoint directory {layout.root} is in use{where}. Wait until that has "
                "ended, or choose another `ckpt.directory`"
            )
        lock.write_holder(str(output_dir.resolve()))
        yield
