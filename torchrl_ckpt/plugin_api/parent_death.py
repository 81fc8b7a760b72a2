"""Ties processes to the one that started them, so that none outlives the runner however it ends.

As a script it does so for any program: `python parent_death.py PROGRAM [ARGUMENT ...]` ties itself
to its parent and becomes the program. It imports only the standard library, to start at once.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from collections.abc import Iterator

ANCESTOR_VARIABLE = "TORCHRL_CKPT_LIFELINE"
"""The environment variable with the process id of an ancestor that must be alive. Whoever starts
processes elsewhere, on another machine say, takes it out of their environment."""

_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36


def die_with_parent() -> None:
    """Have the kernel kill this process when its parent's thread that started it ends.

    Every process asks for itself, torchrun's workers too: the wish survives `exec`, not `fork`.
    Where the parent ended before this was called, the process dies now. Only Linux can do this;
    elsewhere nothing happens.
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
    """This process's id (it may be the ancestor that became another program), its parent's, and so
    on, as far as they can be seen."""
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
