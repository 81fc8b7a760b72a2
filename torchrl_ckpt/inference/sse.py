"""An answer as a stream of server-sent events, as OpenAI's clients read it."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Coroutine
from typing import Any

from fastapi import Response
from pydantic import BaseModel
from starlette.types import Receive, Scope, Send

from torchrl_ckpt.inference.cancel import unless_gone
from torchrl_ckpt.inference.http_errors import ClientGone, record, told
from torchrl_ckpt.serving_api.protocol import ErrorAnswer

Emit = Callable[[BaseModel], None]
"""Puts the next event into a stream."""


class EventStream(Response):
    """Sends what `produce` emits, as it is emitted.

    An error before the first event is an answer with its own status; one after it is an event with
    an `error`, and the stream ends there. A client that disconnects ends `produce`; one that reads
    slowly does not hold it up.
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
            await unless_gone(receive, self._send_events(send_event))
        except ClientGone:
            if not started:
                raise
            return
        except Exception as error:
            if not started:
                raise
            record(f"{scope['method']} {scope['path']}", error)
            await send_event(ErrorAnswer(error=told(error)[1]).model_dump_json())
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
