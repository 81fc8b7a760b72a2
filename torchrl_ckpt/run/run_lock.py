"""Who may be at work in a run's directory: one command alone, or one component of each name.

`rl`, `sft` and what changes a run's checkpoints hold `.lock` alone. Trainer and orchestrator that
are started by hand share it, and each holds `.lock.NAME` alone.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from torchrl_ckpt.plugin_api.durable_files import make_directory, write_json
from torchrl_ckpt.plugin_api.errors import (
    RecipeError,
    RunDirectoryDamaged,
    RunDirectoryInUse,
    RunDirectoryUnwritable,
)
from torchrl_ckpt.plugin_api.plugin import Json
from torchrl_ckpt.run.directory import LOGS_MODE, RunDirectory, new_id, next_attempt, settle_run_id
from torchrl_ckpt.run.file_lock import LockFile

COMPONENTS = ("trainer", "orchestrator")
"""What can be started by hand on one run's directory."""

_RUN = ".lock"
_JOINING = ".lock.joining"
_PAIR = "pair.json"


class Pair(BaseModel):
    """The attempt of components that were started by hand, and which of them it has had."""

    model_config = ConfigDict(extra="forbid")

    id: str
    number: int
    components: list[str]
    options: dict[str, Json]


@contextmanager
def locked_run(root: Path, command: str) -> Iterator[None]:
    """Create the run's directory if need be, and keep every other command and component out of it.

    `command` is named to those who are refused. Raises `RunDirectoryUnwritable`, and
    `RunDirectoryInUse` where another process is at work.
    """
    with _opened(root, _RUN) as lock:
        if not lock.take(fcntl.LOCK_EX):
            raise _in_use(root, _at_work(root) or lock.holder() or "another run")
        _write_holder(lock, f"`{command}`")
        yield


@contextmanager
def locked_component(root: Path, component: str) -> Iterator[None]:
    """Create the run's directory if need be, and keep every command and a second `component` out.

    Raises as `locked_run` does.
    """
    with _opened(root, _RUN) as run, _opened(root, _name(component)) as own:
        if not run.take(fcntl.LOCK_SH):
            raise _in_use(root, run.holder() or "another run")
        with _joining(root):  # Others look whether the lock is held by taking it for a moment.
            if not own.take(fcntl.LOCK_EX):
                raise _in_use(root, own.holder() or f"another {component}")
            _write_holder(own, f"the `{component}`")
        yield


def join_pair(root: Path, component: str, options: dict[str, Json]) -> Pair:
    """Join the attempt that the other component is at work on, or begin one if none is at work.

    The caller is in `locked_component`. `options` are those that both must have settled alike. An
    attempt has each component once: one that has ended has left the other with files and a state
    that a new one does not continue. Raises `RunDirectoryInUse` there, and `RecipeError` for
    options that differ.
    """
    with _joining(root):
        path = root / _PAIR
        partner = _partner(root, component)
        if partner is None:
            settle_run_id(root)
            pair = Pair(id=new_id(), number=next_attempt(root), components=[], options=options)
            make_directory(RunDirectory(root, pair.number).logs, LOGS_MODE)
        else:
            pair = _read_pair(path)
            if component in pair.components:
                raise RunDirectoryInUse(
                    f"in {root}, {_holder(root, partner)} is of an attempt whose {component} has "
                    f"ended, and cannot go on with another one. Stop the {partner}, then start "
                    "both again; `--ckpt.resume-step latest` goes on from the newest checkpoint"
                )
            for name, value in options.items():
                if value != pair.options[name]:
                    raise RecipeError(
                        f"`{name}` is {value!r}, but {pair.options[name]!r} for "
                        f"{_holder(root, partner)} of {root}. Give both the same"
                    )
        pair.components.append(component)
        write_json(path, pair.model_dump())
        (root / _name(component)).write_text(f"{_holder(root, component)}\n{pair.id}")
        return pair


def is_at_work(root: Path, component: str) -> bool:
    """Whether a `component` that was started by hand is at work in `root`."""
    with _joining(root):
        return _held(root, component)


def _partner(root: Path, component: str) -> str | None:
    """The component at work that has joined an attempt: its lock's second line names it.

    One that has its lock but is still settling its start joins later, and finds this one.
    """
    for name in COMPONENTS:
        if name != component and _held(root, name) and "\n" in (root / _name(name)).read_text():
            return name
    return None


def _read_pair(path: Path) -> Pair:
    try:
        return Pair.model_validate_json(path.read_bytes())
    except (FileNotFoundError, ValidationError) as error:
        raise RunDirectoryDamaged(
            f"{path} does not say which attempt the component at work there belongs to. Stop that "
            "one, then start both again"
        ) from error


@contextmanager
def _opened(root: Path, name: str) -> Iterator[LockFile]:
    try:
        root.mkdir(parents=True, exist_ok=True)
        lock = LockFile(root / name)
    except OSError as error:
        raise RunDirectoryUnwritable(
            f"cannot write to the run's directory {root}: {error.strerror}. Choose another "
            "`--output-dir`, or make this one writable"
        ) from error
    with lock:
        yield lock


@contextmanager
def _joining(root: Path) -> Iterator[None]:
    """Held for moments, while a component looks at the others and joins or begins an attempt."""
    with _opened(root, _JOINING) as lock:
        lock.wait()
        yield


def _write_holder(lock: LockFile, name: str) -> None:
    lock.write_holder(f"{name} (process {os.getpid()})")


def _held(root: Path, component: str) -> bool:
    with _opened(root, _name(component)) as lock:
        return not lock.take(fcntl.LOCK_EX)


def _holder(root: Path, component: str) -> str:
    with _opened(root, _name(component)) as lock:
        return lock.holder() or f"the `{component}`"


def _at_work(root: Path) -> str:
    """The components at work; empty if there are none."""
    with _joining(root):
        return " and ".join(_holder(root, name) for name in COMPONENTS if _held(root, name))


def _name(component: str) -> str:
    return f"{_RUN}.{component}"


def _in_use(root: Path, holder: str) -> RunDirectoryInUse:
    return RunDirectoryInUse(
        f"{root} is in use by {holder}. Wait until it has ended, or choose another `--output-dir`"
    )
