"""Cancels work that something else has made needless."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

from starlette.types import Receive

from torchrl_ckpt.inference.http_errors import ClientDisconnected

T = TypeVar("T")


class Interrupted(Exception):
    """The work was cancelled because its interruption happened first."""


async def cancel_when(interruption: asyncio.Future[Any], work: Coroutine[Any, Any, T]) -> T:
    """Return the result of `work`; raises `Interrupted` if `interruption` is done by then.

    When this returns or raises, `work` has ended, cancelled if necessary.
    """
    task = asyncio.ensure_future(work)
    try:
        await asyncio.wait({task, interruption}, return_when=asyncio.FIRST_COMPLETED)
        if interruption.done():
            raise Interrupted
        return task.result()
    finally:
        task.cancel()
        await asyncio.wait({task})
        if not task.cancelled():
            task.exception()  # retrieved, so that asyncio does not warn about it


async def cancel_on_disconnect(receive: Receive, work: Coroutine[Any, Any, T]) -> T:
    """Return the result of `work`; raises `ClientDisconnected` if the client disconnects first.

    The request's body must have been read from `receive`.
    """
    disconnected = asyncio.ensure_future(_wait_for_disconnect(receive))
    try:
        return await cancel_when(disconnected, work)
    except Interrupted:
        raise ClientDisconnected("the client has disconnected") from None
    finally:
        disconnected.cancel()


async def _wait_for_disconnect(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
