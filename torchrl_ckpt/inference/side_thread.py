"""Runs long work of requests, such as tokenization, beside the event loop, one piece at a time."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import anyio
import anyio.to_thread

T = TypeVar("T")

# Work on as few bytes or characters takes milliseconds at most.
_SMALL = 8 * 1024


class SideThread:
    """A thread for the work that would keep the event loop from answering other requests.

    One piece at a time: several parsers, each of which holds Python's lock, would each delay the
    event loop's turn.
    """

    def __init__(self) -> None:
        self._limiter = anyio.CapacityLimiter(1)

    async def run(self, work: Callable[[], T], *, size: int) -> T:
        """Return `work()`; `size` (bytes or characters) tells whether it is worth a thread."""
        if size <= _SMALL:
            return work()
        return await anyio.to_thread.run_sync(work, limiter=self._limiter)
