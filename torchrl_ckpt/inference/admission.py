"""Admission: how many requests run and wait at a time."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from torchrl_ckpt.inference.http_errors import TooManyRequests


class Admission:
    """Lets `max_running` requests run; `max_queued` more wait, in order of arrival."""

    def __init__(self, *, max_running: int, max_queued: int) -> None:
        self._slots = asyncio.Semaphore(max_running)
        self._max_queued = max_queued
        self.num_running = 0
        self.num_queued = 0

    @asynccontextmanager
    async def admit(self) -> AsyncIterator[None]:
        """Run the block once a slot is free. Raises `TooManyRequests` if the queue is full."""
        if self._slots.locked() and self.num_queued >= self._max_queued:
            raise TooManyRequests(
                f"{self.num_queued} requests are waiting already (`inference.max_queued`); retry "
                "later"
            )
        self.num_queued += 1
        try:
            await self._slots.acquire()
        finally:
            self.num_queued -= 1
        self.num_running += 1
        try:
            yield
        finally:
            self.num_running -= 1
            self._slots.release()
