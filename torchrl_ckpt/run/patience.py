"""Writes that are tried again while the disk refuses them: a full disk must not end a run."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from torchrl_ckpt.run.polling import Deadline, wait_for, wait_for_async
from torchrl_ckpt.run.progress import ProgressLog

_RETRY_SECONDS = 1.0


@dataclass(frozen=True)
class Patience:
    """For how many `seconds` a write is tried again, which `option` sets that, and who is told."""

    seconds: float
    option: str
    progress: ProgressLog

    def write(self, write: Callable[[], None], what: str) -> None:
        """Call `write` until it succeeds; `what` names what it writes.

        Raises `WaitTimeout`, naming the option, once the time is over.
        """
        tries = _Tries(write, what, self)
        wait_for(tries, f"room on the disk for {what}", Deadline(self.seconds, self.option))

    async def write_async(self, write: Callable[[], None], what: str) -> None:
        """`write` that leaves the event loop free between two tries."""
        tries = _Tries(write, what, self)
        deadline = Deadline(self.seconds, self.option)
        await wait_for_async(tries, f"room on the disk for {what}", deadline)


class _Tries:
    """Tries a write at most once in `_RETRY_SECONDS`; the first failure is a warning."""

    def __init__(self, write: Callable[[], None], what: str, patience: Patience) -> None:
        self._write = write
        self._what = what
        self._patience = patience
        self._failed = False
        self._next = float("-inf")

    def __call__(self) -> Literal[True] | None:
        if time.monotonic() < self._next:
            return None
        try:
            self._write()
        except OSError as error:
            self._next = time.monotonic() + _RETRY_SECONDS
            if not self._failed:
                self._failed = True
                self._patience.progress.message(
                    f"cannot write {self._what}: {error}. Trying again for up to "
                    f"{self._patience.seconds:.0f} s (`{self._patience.option}`); free some space "
                    "on that disk",
                    "warning",
                )
            return None
        if self._failed:
            self._patience.progress.message(f"{self._what} is written now")
        return True
