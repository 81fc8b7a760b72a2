"""A limit to the size of a request's body, held whatever its headers say."""

from __future__ import annotations

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from torchrl_ckpt.inference.failures import TooLarge


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
