"""The server's connections: how many there may be, and how long a client may take."""

from __future__ import annotations

import asyncio
import logging
import resource
import time
from enum import Enum
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

_log = logging.getLogger(__name__)

# For `/health`, `/metrics`, loads of weights, and requests that are refused.
_SPARE_CONNECTIONS = 256

# For the engine's and Python's own files.
_SPARE_FILES = 256

_MIN_CONNECTIONS = 16

# To parse a chunk takes as long as to parse much text: less than so many bytes a chunk on average,
# after the first ones, are refused.
_MIN_CHUNK_BYTES = 64
_FREE_CHUNKS = 1000


class Phase(Enum):
    """What a connection waits for."""

    FIRST_HEAD = "the head of its first request"
    HEAD = "the rest of the head of a later request"
    IDLE = "a later request"  # There may be none; uvicorn ends this wait.
    BODY = "the rest of a body"
    ANSWER = "the server's own work"
    READER = "the client to read what it was sent"


_CLIENT_IS_DUE = {Phase.FIRST_HEAD, Phase.HEAD, Phase.BODY, Phase.READER}
_MAY_MAKE_ROOM = (Phase.FIRST_HEAD, Phase.IDLE, Phase.HEAD, Phase.BODY)


class Connections:
    """All open connections of a server.

    Of more than `max_open`, the oldest that waits for a request makes room. `client_timeout`
    (seconds) bounds the time in which a client must send a head, or a body, or read a full buffer.
    """

    def __init__(self, *, max_open: int, client_timeout: float) -> None:
        self._max_open = max_open
        self._client_timeout = client_timeout
        # In the order of their arrival: what each waited for when looked at, and since when.
        self._open: dict[BoundedConnection, tuple[object, float]] = {}

    def opened(self, connection: BoundedConnection) -> None:
        """Admit a new connection."""
        if len(self._open) >= self._max_open:
            _log.warning(
                "%d connections are open; the oldest without a request is ended", len(self._open)
            )
            self._make_room(connection)
        self._open[connection] = (None, 0.0)

    def closed(self, connection: BoundedConnection) -> None:
        """Forget a connection that has ended."""
        self._open.pop(connection, None)

    def end_overdue(self) -> None:
        """End the connections whose clients have taken too long. Call it every second or so."""
        now = time.monotonic()
        for connection, (awaited, since) in list(self._open.items()):
            phase, current = connection.phase, connection.awaited
            if current != awaited:
                self._open[connection] = (current, now)
            elif phase in _CLIENT_IS_DUE and now - since > self._client_timeout:
                _log.warning(
                    "a client is disconnected: the server has waited more than %.0f s for %s "
                    "(`inference.client_timeout`)",
                    self._client_timeout,
                    phase.value,
                )
                connection.abort()

    def _make_room(self, newcomer: BoundedConnection) -> None:
        for phase in _MAY_MAKE_ROOM:
            for connection in self._open:
                if connection.phase is phase:
                    connection.abort()
                    self.closed(connection)
                    return
        newcomer.abort()


class _Requests(h11.Connection):
    """The requests of a connection. One whose body has too many too small chunks is aborted."""

    def __init__(self, connection: BoundedConnection) -> None:
        super().__init__(h11.SERVER)
        self._connection = connection
        self._num_chunks = self._num_bytes = 0

    def next_event(self) -> Any:
        event = super().next_event()
        if isinstance(event, h11.Request):
            self._num_chunks = self._num_bytes = 0
        elif isinstance(event, h11.Data):
            self._num_chunks += 1
            self._num_bytes += len(event.data)
            if (self._num_chunks - _FREE_CHUNKS) * _MIN_CHUNK_BYTES > self._num_bytes:
                _log.warning("a client is disconnected: its body is in too many small chunks")
                self._connection.abort()
                return h11.NEED_DATA
        return event


class BoundedConnection(H11Protocol):
    """A connection that is `counted_by` a server's `Connections`."""

    counted_by: Connections

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.conn = _Requests(self)

    _has_part_of_head = False
    _num_resumed = 0

    @property
    def phase(self) -> Phase:
        """What it waits for."""
        if self.flow.write_paused or self.transport.is_closing():
            return Phase.READER
        if self.conn.their_state is h11.SEND_BODY:
            return Phase.BODY
        if self.conn.their_state is not h11.IDLE:
            return Phase.ANSWER
        if self.cycle is None:
            return Phase.FIRST_HEAD
        return Phase.HEAD if self._has_part_of_head else Phase.IDLE

    @property
    def awaited(self) -> object:
        """What it waits for, different for each request and whenever the client has read."""
        return self.phase, self.cycle, self._num_resumed

    def abort(self) -> None:
        """End it at once, whatever has not been sent."""
        self.transport.abort()

    def shutdown(self) -> None:
        """End it once its running request, if there is one, is answered: the server stops."""
        if self.phase is Phase.BODY:
            self.abort()
        else:
            super().shutdown()

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self.counted_by.opened(self)

    def connection_lost(self, exc: Exception | None) -> None:
        self.counted_by.closed(self)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._has_part_of_head = self.conn.their_state is h11.IDLE

    def on_response_complete(self) -> None:
        self._has_part_of_head = False
        super().on_response_complete()

    def resume_writing(self) -> None:
        self._num_resumed += 1
        super().resume_writing()


def bounded_connections(connections: Connections) -> type[BoundedConnection]:
    """Return the protocol, a class, whose connections are counted by `connections`."""
    members: dict[str, Any] = {"counted_by": connections}
    return type("BoundedConnection", (BoundedConnection,), members)


def max_connections(num_requests: int) -> int:
    """Return how many connections `num_requests` requests at a time need; fewer if the system does
    not let this process have so many open files. Raises the process's own limit for that."""
    wanted = num_requests + _SPARE_CONNECTIONS
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY:
        return wanted
    if soft < wanted + _SPARE_FILES:
        soft = wanted + _SPARE_FILES
        if hard != resource.RLIM_INFINITY:
            soft = min(soft, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    allowed = max(soft - _SPARE_FILES, _MIN_CONNECTIONS)
    if allowed < wanted:
        _log.warning(
            "at most %d connections at a time, not %d: the limit of open files (`ulimit -n`) is %d",
            *(allowed, wanted, soft),
        )
    return min(wanted, allowed)
