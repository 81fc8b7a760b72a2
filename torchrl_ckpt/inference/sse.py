"""Streams a response as server-sent events, in the form that OpenAI's clients read."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Coroutine
from typing import Any

from fastapi import Response
from pydantic import BaseModel
from starlette.types import Receive, Scope, Send

from torchrl_ckpt.inference.cancel import cancel_on_disconnect
from torchrl_ckpt.inference.http_errors import ClientDisconnected, describe_error, log_server_error
from torchrl_ckpt.serving_api.protocol import ErrorResponse

Emit = Callable[[BaseModel], None]
"""Adds the next event to a stream."""


class EventStream(Response):
    """Sends the events that `produce` emits as they are emitted.

    An error before the first event gets a response with its own status; a later error is sent as an
    event with an `error`, which ends the stream. If the client disconnects, `produce` is cancelled;
    a client that reads slowly does not block it.
    """

    def __init__(self, produce: Callable[[Emit], Coroutine[Any, Any, None]]) -> None:
        super().__init__(media_type="text/event-stream", headers={"Cache-Control": "no-cache"})
        del self.headers["Content-Length"]
        self._produce = produce

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
        events: asyncio.Queue[BaseModel | None] = asyncio.Queue()
        producing = asyncio.ensure_future(self._produce(events.put_nowait))
        producing.add_done_callback(lambda _: events.put_nowait(None))
        try:
            while (event := await events.get()) is not None:
                await send_event(event.model_dump_json())
            producing.result()
            await send_event("[DONE]")
        finally:
            producing.cancel()
            with contextlib.suppress(asyncio.CancelledError, Exception):
                await producing
