"""Shows the launcher that a process makes progress: one that does not is found and ended.

A process of a job touches a file of its own with each step of its work (`beat`): a micro-batch, a
token, a look at what it waits for. Waiting in a loop is progress, since what is awaited has a
heartbeat itself; waiting in a collective is none. Where no launcher watches, nothing happens.
"""

from __future__ import annotations

import faulthandler
import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

DIRECTORY_VARIABLE = "TORCHRL_CKPT_HEARTBEATS"
"""The environment variable with the directory of the files, which are called `NAME.PID`."""

DUMP_SIGNAL = signal.SIGUSR1
"""Has a process that has called `begin` write the stacks of its threads into its log."""

_INTERVAL_SECONDS = 0.5

_file: Path | None = None
_last_beat = 0.0
_work_in_progress = 0
_started = threading.Event()


def begin(name: str) -> None:
    """Begin to show progress as `name`. Call it in the process itself, once.

    Until the first `beat`, a thread beats: the start, which may download a model, has no limit.
    Only a process that is stopped is then found to hang.
    """
    global _file
    directory = os.environ.get(DIRECTORY_VARIABLE)
    if directory is None:
        return
    faulthandler.register(DUMP_SIGNAL, all_threads=True)
    file = Path(directory, f"{name}.{os.getpid()}")
    # A full disk must not end the run here: this process is then not watched.
    with suppress(OSError):
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()
        _file = file
        threading.Thread(target=_beat_at_start, name="heartbeat", daemon=True).start()


def beat() -> None:
    """Report progress. Frequent calls are cheap."""
    global _last_beat
    _started.set()
    now = time.monotonic()
    if now - _last_beat >= _INTERVAL_SECONDS:
        _last_beat = now
        _touch()


@contextmanager
def working() -> Iterator[None]:
    """Mark a block that beats itself while it makes progress, beside an event loop."""
    global _work_in_progress
    _work_in_progress += 1
    try:
        yield
    finally:
        _work_in_progress -= 1
        beat()


def beat_if_idle() -> None:
    """Beat unless a `working` block runs: an event loop goes on although its work hangs."""
    if _work_in_progress == 0:
        beat()


def _beat_at_start() -> None:
    while not _started.wait(_INTERVAL_SECONDS):
        _touch()


def _touch() -> None:
    if _file is not None:
        with suppress(OSError):
            os.utime(_file)
