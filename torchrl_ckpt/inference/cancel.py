"""Work that is given up when something happens before it is done."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

from starlette.types import Receive

from torchrl_ckpt.inference.http_errors import ClientGone

T = TypeVar("T")


class Interrupted(Exception):
    """What the work was not to outlast has happened."""


async def unless(interruption: asyncio.Future[Any], work: Coroutine[Any, Any, T]) -> T:
    """`work`'s result; raises `Interrupted` if `interruption` is done by then.

    `work` has ended when this returns or raises, cancelled where need be.
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
            task.exception()  # seen, so that asyncio does not report it as forgotten


async def unless_gone(receive: Receive, work: Coroutine[Any, Any, T]) -> T:
    """`work`'s result; raises `ClientGone` where the client disconnects first.

    The request's body must have been read from `receive`.
    """
    gone = asyncio.ensure_future(_disconnected(receive))
    try:
        return await unless(gone, work)
    except Interrupted:
        raise ClientGone("the client has disconnected") from None
    finally:
        gone.cancel()


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
