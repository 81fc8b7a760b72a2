"""Long work on the event loop's thread, in short slices, so that other requests are answered."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator

_SLICE_SECONDS = 0.004


class LoopShare:
    """The part of the event loop's time that long work on its thread may take.

    All such work together runs one slice of 4 ms in each turn of the loop, so other requests are
    answered in between.
    """

    def __init__(self) -> None:
        self._turn = asyncio.Lock()  # taken in the order of arrival

    async def run(self, work: Iterator[None]) -> None:
        """Exhaust `work`, which yields where it may be interrupted."""
        unfinished = True
        while unfinished:
            async with self._turn:
                end = time.monotonic() + _SLICE_SECONDS
                unfinished = any(time.monotonic() >= end for _ in work)
                await asyncio.sleep(0)
