"""Streams a response as server-sent events, in the form that OpenAI's clients read."""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any

from fastapi import Response
from pydantic import BaseModel
from starlette.types import Receive, Scope, Send

from torchrl_ckpt.inference.cancel import cancel_on_disconnect
from torchrl_ckpt.inference.http_errors import (
    ClientDisconnected,
    SlowReader,
    describe_error,
    log_server_error,
)
from torchrl_ckpt.serving_api.protocol import ErrorResponse

# About 25,000 events of one token each.
_MAX_UNREAD_BYTES = 8 * 1024 * 1024


class Outbox:
    """The events of a stream that have not been sent yet.

    Beyond 8 MiB further events are dropped and `overflowed` is set: the client does not read. It is
    also set where the rest is not read within `client_timeout` seconds.
    """

    def __init__(self, client_timeout: float) -> None:
        self._client_timeout = client_timeout
        self.overflowed = asyncio.Event()
        self._events: deque[str | None] = deque()
        self._num_bytes = 0
        self._added = asyncio.Event()
        self._empty = asyncio.Event()
        self._empty.set()

    def put(self, event: BaseModel) -> None:
        """Add the next event."""
        if self.overflowed.is_set():
            return
        content = event.model_dump_json()
        self._num_bytes += len(content)
        if self._num_bytes > _MAX_UNREAD_BYTES:
            self.overflowed.set()
            return
        self._append(content)

    def end(self) -> None:
        """Add no more events."""
        self._append(None)

    def discard(self) -> None:
        """Drop all events: nobody will take them."""
        self._events.clear()
        self._empty.set()

    async def emptied(self) -> None:
        """Return once every event so far has been sent, or dropped."""
        try:
            async with asyncio.timeout(self._client_timeout):
                await self._empty.wait()
        except TimeoutError:
            self.overflowed.set()
            self.discard()

    async def events(self) -> AsyncIterator[str]:
        """Yield the events as JSON, until the end. One is sent when the next is asked for."""
        while True:
            if not self._events:
                self._empty.set()
                self._added.clear()
                await self._added.wait()
            event = self._events.popleft()
            if event is None:
                return
            self._num_bytes -= len(event)
            yield event

    def _append(self, event: str | None) -> None:
        self._events.append(event)
        self._empty.clear()
        self._added.set()


class EventStream(Response):
    """Sends the events that `produce` puts into its outbox as they come.

    An error before the first event gets a response with its own status; a later error is sent as an
    event with an `error`, which ends the stream. If the client disconnects, or reads so slowly that
    the outbox overflows, `produce` is cancelled. Once `produce` has nothing more to add, the client
    has `client_timeout` seconds to read the rest.
    """

    def __init__(
        self, produce: Callable[[Outbox], Coroutine[Any, Any, None]], *, client_timeout: float
    ) -> None:
        super().__init__(media_type="text/event-stream", headers={"Cache-Control": "no-cache"})
        del self.headers["Content-Length"]
        self._produce = produce
        self._client_timeout = client_timeout

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        started = False

        async def send_event(content: str) -> None:
            nonlocal started
            if not started:
                started = True
                await send(
                    {
                        "type": "http.response.start",
                        "status": self.status_code,
                        "headers": self.raw_headers,
                    }
                )
            body = f"data: {content}\n\n".encode()
            await send({"type": "http.response.body", "body": body, "more_body": True})

        try:
            await cancel_on_disconnect(receive, self._send_events(send_event))
        except ClientDisconnected:
            if not started:
                raise
            return
        except Exception as error:
            if not started:
                raise
            log_server_error(f"{scope['method']} {scope['path']}", error)
            await send_event(ErrorResponse(error=describe_error(error)[1]).model_dump_json())
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _send_events(self, send_event: Callable[[str], Coroutine[Any, Any, None]]) -> None:
        outbox = Outbox(self._client_timeout)
        producing = asyncio.ensure_future(self._produce(outbox))
        producing.add_done_callback(lambda _: outbox.end())
        overflowing = asyncio.ensure_future(outbox.overflowed.wait())
        overflowing.add_done_callback(lambda _: producing.cancel())
        try:
            async for event in outbox.events():
                await send_event(event)
            if outbox.overflowed.is_set():
                raise SlowReader(
                    "the client reads this stream too slowly: "
                    f"{_MAX_UNREAD_BYTES} bytes are unread, "
                    f"or the rest was not read within {self._client_timeout:.0f} s"
                )
            producing.result()
            await send_event("[DONE]")
        finally:
            outbox.discard()
            overflowing.cancel()
            producing.cancel()
            with contextlib.suppress(asyncio.CancelledError, Exception):
                await producing
