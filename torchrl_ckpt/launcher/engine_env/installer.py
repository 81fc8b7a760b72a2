"""Installs an engine's Python environment: one job at a time, and no installer outlives its job."""

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
from torchrl_ckpt.run.file_lock import LockFile

LOG = "install.log"
_LINES_SHOWN = 20


@contextmanager
def installation_lock(directory: Path, console: Console) -> Iterator[int]:
    """Hold the lock on installing into `directory`; wait while another job holds it.

    Yields the file descriptor of the lock. A child process that inherits it holds the lock as well,
    until both have closed it. The locked file is beside `directory`, because `directory` itself is
    removed during an installation.
    """
    path = directory.with_name(f".{directory.name.lstrip('.')}.lock")
    path.parent.mkdir(parents=True, exist_ok=True)
    with LockFile(path) as lock:
        if not lock.take(fcntl.LOCK_EX):
            console.print(f"waiting until another job has set up {directory}", soft_wrap=True)
            lock.wait()
        yield lock.fileno()


def install_venv(
    directory: Path,
    pip_arguments: Sequence[str],
    unwanted: Sequence[str],
    *,
    lock: int,
    console: Console,
) -> None:
    """Replace `directory` by a new virtual environment with what `pip install` is asked for.

    The distributions `unwanted` are uninstalled at the end. `lock` is from `installation_lock`.
    Raises `EngineEnvironmentFailed`.
    """
    with suppress(FileNotFoundError):
        shutil.rmtree(directory)
    directory.mkdir(parents=True)
    # -P: a module in the working directory is not found.
    pip = [str(directory / "bin" / "python"), "-P", "-m", "pip", "--disable-pip-version-check"]
    commands = [
        [sys.executable, "-P", "-m", "venv", str(directory)],
        [*pip, "install", "--progress-bar", "off", *pip_arguments],
    ]
    if unwanted:
        commands.append([*pip, "uninstall", "--yes", *unwanted])
    for command in commands:
        run_logged(command, directory, lock=lock, console=console)


def run_logged(command: Sequence[str], directory: Path, *, lock: int, console: Console) -> None:
    """Run `command`, append its output to the log in `directory`, and show the latest line of it.

    The command is killed when this process ends; call this from the main thread (`parent_death`
    says why). Raises `EngineEnvironmentFailed` if the command fails.
    """
    log = directory / LOG
    last_lines: deque[str] = deque(maxlen=_LINES_SHOWN)
    with (
        open(log, "a") as file,
        console.status("") as status,
        subprocess.Popen(
            [sys.executable, "-I", "-S", parent_death.__file__, *command],
            env={**os.environ, parent_death.ANCESTOR_VARIABLE: str(os.getpid())},
            # Grandchildren (venv starts ensurepip, which starts pip) do not die with this process,
            # but inherit standard input: the lock is held until the last of them has ended.
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
                last_lines.append(line.rstrip())
                status.update(line.strip()[: console.width - 4].replace("[", r"\["))
        except BaseException:
            process.kill()  # After Ctrl-C, leaving the block would wait for the command's end.
            raise
    if process.returncode != 0:
        shown = "\n".join(f"  | {line}" for line in last_lines)
        raise EngineEnvironmentFailed(
            f"{directory} cannot be set up: `{' '.join(command)}` failed\n{shown}\n"
            f"the whole output is in {log}"
        )
