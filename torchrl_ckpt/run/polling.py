"""Waiting for what another process delivers: every wait has a limit and says what it waits for."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import TypeVar

from torchrl_ckpt.plugin_api import heartbeat
from torchrl_ckpt.plugin_api.errors import WaitTimeout

T = TypeVar("T")

_POLL_SECONDS = 0.01


class Deadline:
    """The end of one wait or of several, `seconds` from now; `option` sets this limit."""

    def __init__(self, seconds: float, option: str) -> None:
        self._seconds = seconds
        self._option = option
        self._end = time.monotonic() + seconds

    def check(self, awaited: str) -> None:
        """Raise `WaitTimeout`, naming `awaited` and the option, once the deadline has passed."""
        if time.monotonic() > self._end:
            raise WaitTimeout(
                f"waited {self._seconds:.0f} s for {awaited}, which did not appear "
                f"(`{self._option}` sets the limit). See the log of the process that should have "
                "delivered it"
            )


def wait_for(look: Callable[[], T | None], awaited: str, deadline: Deadline) -> T:
    """Call `look` until it returns something other than None; return that.

    `awaited` describes it. Raises `WaitTimeout` at the deadline.
    """
    while (found := look()) is None:
        deadline.check(awaited)
        heartbeat.beat()
        time.sleep(_POLL_SECONDS)
    return found


async def wait_for_async(look: Callable[[], T | None], awaited: str, deadline: Deadline) -> T:
    """`wait_for` that leaves the event loop free between two looks."""
    while (found := look()) is None:
        deadline.check(awaited)
        await asyncio.sleep(_POLL_SECONDS)
    return found
