"""Fills the directory of a Python environment: one job at a time, and never past that job's end."""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import sys
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from rich.console import Console

from torchrl_ckpt.plugin_api import parent_death
from torchrl_ckpt.plugin_api.errors import EngineEnvironmentFailed

LOG = "install.log"
_LINES_SHOWN = 20


@contextmanager
def only_one(directory: Path, console: Console) -> Iterator[int]:
    """Hold the lock of `directory`: of two jobs that find it wanting one makes it, and the other
    waits and then finds it made.

    What is locked is a file beside it, since `directory` itself is removed on the way. The lock
    goes with the open file whose descriptor this gives: whoever inherits that holds it as well.
    """
    path = directory.with_name(f".{directory.name.lstrip('.')}.lock")
    path.parent.mkdir(parents=True, exist_ok=True)
    # Open for writing: on NFS there is no exclusive lock otherwise.
    lock = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            console.print(f"waiting for another job that sets up {directory}", soft_wrap=True)
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield lock
    finally:
        os.close(lock)


def make(
    directory: Path,
    arguments: Sequence[str],
    unwanted: Sequence[str],
    *,
    lock: int,
    console: Console,
) -> None:
    """A new environment in place of what is in `directory`, of what pip makes of `arguments`, less
    the distributions `unwanted`. Raises `EngineEnvironmentFailed`."""
    with suppress(FileNotFoundError):
        shutil.rmtree(directory)
    directory.mkdir(parents=True)
    pip = [str(directory / "bin" / "python"), "-m", "pip", "--disable-pip-version-check"]
    commands = [
        [sys.executable, "-m", "venv", str(directory)],
        [*pip, "install", "--progress-bar", "off", *arguments],
    ]
    if unwanted:
        commands.append([*pip, "uninstall", "--yes", *unwanted])
    for command in commands:
        run(command, directory, lock=lock, console=console)


def run(command: Sequence[str], directory: Path, *, lock: int, console: Console) -> None:
    """Run `command` with its output in the log of `directory`, and the latest line of it on a
    terminal.

    It dies with this process, so call this from the main thread (`parent_death`). Raises
    `EngineEnvironmentFailed`.
    """
    log = directory / LOG
    tail: deque[str] = deque(maxlen=_LINES_SHOWN)
    with (
        open(log, "a") as file,
        console.status("") as status,
        subprocess.Popen(
            [sys.executable, "-I", "-S", parent_death.__file__, *command],
            env={**os.environ, parent_death.ANCESTOR_VARIABLE: str(os.getpid())},
            # What the command starts itself (venv starts ensurepip, and that pip) is not tied to
            # anybody, but has its input: as long as one of them lives, the lock is held.
            stdin=lock,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
        ) as process,
    ):
        assert process.stdout is not None
        try:
            for line in process.stdout:
                file.write(line)
                tail.append(line.rstrip())
                status.update(line.strip()[: console.width - 4].replace("[", r"\["))
        except BaseException:  # Ctrl-C: leaving the block would wait for its end
            process.kill()
            raise
    if process.returncode != 0:
        shown = "\n".join(f"  | {line}" for line in tail)
        raise EngineEnvironmentFailed(
            f"{directory} cannot be set up: `{' '.join(command)}` failed\n{shown}\n"
            f"all of its output: {log}"
        )
