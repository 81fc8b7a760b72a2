"""Ends a process when the process that started it ends, so that none outlives the launcher.

As a script it does so for any program: `python parent_death.py PROGRAM [ARGUMENT ...]` ties itself
to its parent and then becomes the program. It imports only the standard library, so that it starts
fast.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from collections.abc import Iterator

ANCESTOR_VARIABLE = "TORCHRL_CKPT_ANCESTOR_PID"
"""The environment variable with the process id of an ancestor that must be alive. A program that
starts processes elsewhere, on another machine for example, removes it from their environment."""

_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36


def die_with_parent() -> None:
    """Have the kernel kill this process when the thread of its parent that started it ends.

    Every process calls this for itself, torchrun's workers too: the setting survives `exec`, but
    not `fork`. If the parent ended before this call, the process is killed now. Only Linux can do
    this; elsewhere nothing happens.
    """
    if sys.platform != "linux":
        return
    _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    ancestor = os.environ.get(ANCESTOR_VARIABLE)
    if ancestor is not None and int(ancestor) not in _lineage():
        os.kill(os.getpid(), signal.SIGKILL)


def adopt_orphans() -> None:
    """Make this process the parent of every descendant whose own parent ends (Linux only)."""
    if sys.platform == "linux":
        _prctl(_PR_SET_CHILD_SUBREAPER, 1)


def _prctl(option: int, value: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(option, ctypes.c_ulong(value), 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl failed")


def _lineage() -> Iterator[int]:
    """Yield the ids of this process, its parent and so on, as far as they are visible.

    This process counts: the ancestor may have become another program by `exec`.
    """
    pid = os.getpid()
    while pid > 0:
        yield pid
        try:
            with open(f"/proc/{pid}/status") as status:
                pid = next(int(line.split()[1]) for line in status if line.startswith("PPid:"))
        except (FileNotFoundError, ProcessLookupError):
            return


def main() -> None:
    die_with_parent()
    os.environ[ANCESTOR_VARIABLE] = str(os.getpid())
    try:
        os.execvp(sys.argv[1], sys.argv[1:])
    except OSError as error:
        sys.exit(f"error: cannot start {sys.argv[1]}: {error.strerror}")


if __name__ == "__main__":
    main()
