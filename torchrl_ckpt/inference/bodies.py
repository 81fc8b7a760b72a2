"""Reads and parses the bodies of requests, each and all together bounded in size."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from typing import Any, TypeVar

from fastapi import Request
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, ValidationError
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from torchrl_ckpt.inference.http_errors import (
    BadRequest,
    ClientDisconnected,
    RequestError,
    TooLarge,
    TooManyRequests,
    error_response,
)
from torchrl_ckpt.inference.side_thread import SideThread

Model = TypeVar("Model", bound=BaseModel)

# This much of every body does not count, so that large bodies cannot keep small ones out.
_FREE_BYTES = 64 * 1024

_BUDGET_IN_LARGEST_BODIES = 4

# More than any request has: every unknown parameter would be reported.
_MAX_PARAMETERS = 64

# What a body may hold outside of its texts: far more than any request needs. To parse and check
# them takes a thousand times as long as to read so many bytes of text, and holds the event loop.
_MAX_CONTAINERS = 32 * 1024
_MAX_KEYS = 128 * 1024
_MAX_ITEMS = 2 * 1024 * 1024
_PIECES_AT_A_TIME = 64 * 1024
_TEXT = re.compile(rb'"(?:[^"\\]++|\\.)*+"?', re.DOTALL)


class BoundedBodies:
    """ASGI middleware that reads the body before the application gets the request.

    It answers 413 to a body of more than `max_bytes`, and 429 where all bodies of the requests in
    progress together would exceed four times that. A request's bytes count until it is answered.
    """

    def __init__(self, app: ASGIApp, max_bytes: int) -> None:
        self._app = app
        self._max_bytes = max_bytes
        self._bytes_left = _BUDGET_IN_LARGEST_BODIES * max_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        body = _Body(self)
        try:
            try:
                await body.read(scope, receive)
            except RequestError as error:
                await error_response(error)(scope, receive, send)
            else:
                await self._app(scope, body.replayed(receive), send)
        finally:
            self._bytes_left += body.num_charged

    def check_size(self, num_bytes: int) -> None:
        """Raise `TooLarge` for a body of more than the limit."""
        if num_bytes > self._max_bytes:
            raise TooLarge(
                f"the body exceeds {self._max_bytes} bytes (`inference.max_body_bytes`); split it "
                "into several requests"
            )

    def charge(self, num_bytes: int) -> None:
        """Take `num_bytes` of those that are left. Raises `TooManyRequests`."""
        if num_bytes > self._bytes_left:
            raise TooManyRequests(
                "the bodies of the requests in progress are too large together "
                f"({_BUDGET_IN_LARGEST_BODIES} times `inference.max_body_bytes`); retry later"
            )
        self._bytes_left -= num_bytes


class _Body:
    """The body of one request. `num_charged`: how much of the common budget it holds."""

    def __init__(self, bounds: BoundedBodies) -> None:
        self.num_charged = 0
        self._bounds = bounds
        self._content = b""

    async def read(self, scope: Scope, receive: Receive) -> None:
        announced = next((v for name, v in scope["headers"] if name == b"content-length"), b"0")
        self._bounds.check_size(int(announced))
        parts, num_bytes, more = [], 0, True
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise ClientDisconnected("the client has disconnected")
            part, more = message.get("body", b""), message.get("more_body", False)
            num_bytes += len(part)
            self._bounds.check_size(num_bytes)
            due = max(0, num_bytes - _FREE_BYTES) - self.num_charged
            self._bounds.charge(due)
            self.num_charged += due
            parts.append(part)
        self._content = b"".join(parts)

    def replayed(self, receive: Receive) -> Receive:
        """Return a `receive` that gives the whole body first."""
        pending: list[Message] = [
            {"type": "http.request", "body": self._content, "more_body": False}
        ]
        self._content = b""

        async def replay() -> Message:
            return pending.pop() if pending else await receive()

        return replay


def parsed_body(form: type[Model], side_thread: SideThread) -> Callable[..., Awaitable[Model]]:
    """Return a dependency that parses a request's body as `form`. Raises `BadRequest` and
    `RequestValidationError`."""

    async def parse(http_request: Request) -> Model:
        body = await http_request.body()
        return await side_thread.run(lambda: _parse(form, body), size=len(body))

    return parse


def _parse(form: type[Model], body: bytes) -> Model:
    _refuse_many_values(body)
    try:
        parameters: Any = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise BadRequest("the body is not JSON") from error
    if not isinstance(parameters, dict):
        raise BadRequest("the body is not a JSON object")
    for value in (parameters, *parameters.values()):
        if isinstance(value, dict) and len(value) > _MAX_PARAMETERS:
            raise BadRequest(
                f"an object in the body has {len(value)} keys, more than any parameter"
            )
    try:
        return form.model_validate(parameters)
    except ValidationError as error:
        mistakes = error.errors(include_input=False, include_url=False)
        raise RequestValidationError(
            [{**mistake, "loc": ("body", *mistake["loc"])} for mistake in mistakes]
        ) from None


def _refuse_many_values(body: bytes) -> None:
    """Raise `BadRequest` for a body of more values than the limits."""
    if _within_limits(_count(body)):
        return  # With those signs that are in texts, such as code in a prompt.
    counts: Counter[bytes] = Counter()
    for part in _outside_texts(body):
        counts += _count(part)
        if not _within_limits(counts):
            raise BadRequest(
                f"the body has more than {_MAX_CONTAINERS} lists and objects, {_MAX_KEYS} keys or "
                f"{_MAX_ITEMS} items; split it into several requests"
            )


def _outside_texts(body: bytes) -> Iterator[bytes]:
    """Yield what is outside of texts, part by part."""
    pieces, start = [], 0
    for text in _TEXT.finditer(body):
        pieces.append(body[start : text.start()])
        start = text.end()
        if len(pieces) == _PIECES_AT_A_TIME:
            yield b"".join(pieces)
            pieces = []
    yield b"".join([*pieces, body[start:]])


def _count(text: bytes) -> Counter[bytes]:
    """Count the signs that begin lists and objects, that follow keys, and that part items."""
    return Counter({sign: text.count(sign) for sign in (b"[", b"{", b":", b",")})


def _within_limits(counts: Counter[bytes]) -> bool:
    return (
        counts[b"["] + counts[b"{"] <= _MAX_CONTAINERS
        and counts[b":"] <= _MAX_KEYS
        and counts[b","] <= _MAX_ITEMS
    )
