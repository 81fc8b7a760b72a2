"""How many requests are worked on at a time, how many may wait, and who is turned away."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from torchrl_ckpt.inference.http_errors import TooLarge, TooManyRequests

_RETRY_SECONDS = 1


class Admission:
    """Places for `max_running` requests; `max_queued` more wait for one, in order of arrival."""

    def __init__(self, *, max_running: int, max_queued: int) -> None:
        self._places = asyncio.Semaphore(max_running)
        self._max_queued = max_queued
        self.num_running = 0
        self.num_queued = 0

    @asynccontextmanager
    async def place(self) -> AsyncIterator[None]:
        """A place for as long as the block runs. Raises `TooManyRequests`."""
        if self._places.locked() and self.num_queued >= self._max_queued:
            raise TooManyRequests(
                f"{self.num_queued} requests are waiting already (`inference.max_queued`); ask "
                "again later",
                headers={"Retry-After": str(_RETRY_SECONDS)},
            )
        self.num_queued += 1
        try:
            await self._places.acquire()
        finally:
            self.num_queued -= 1
        self.num_running += 1
        try:
            yield
        finally:
            self.num_running -= 1
            self._places.release()


class BodyLimit:
    """ASGI middleware that answers 413 once a body has more than `max_bytes`."""

    def __init__(self, app: ASGIApp, max_bytes: int) -> None:
        self._app = app
        self._max_bytes = max_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        received = 0

        async def counted() -> Message:
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            if received > self._max_bytes:
                raise TooLarge(
                    f"the body exceeds {self._max_bytes} bytes (`inference.max_body_bytes`); make "
                    "several requests of it"
                )
            return message

        await self._app(scope, counted, send)
