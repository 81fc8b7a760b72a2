"""Waiting for what another process delivers: always with a limit, always saying for what."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

from torchrl_ckpt.plugin_api.errors import WaitTimeout

T = TypeVar("T")

_POLL_SECONDS = 0.01


def wait_for(look: Callable[[], T | None], what: str, timeout: float, option: str) -> T:
    """The first result of `look` that is not None.

    Raises `WaitTimeout`, naming `what` and the `option` that sets the limit (in seconds).
    """
    deadline = time.monotonic() + timeout
    while (found := look()) is None:
        if time.monotonic() > deadline:
            raise WaitTimeout(
                f"waited {timeout:.0f} s for {what}, in vain (`{option}` sets the limit). "
                "See the log of the process that should have delivered it"
            )
        time.sleep(_POLL_SECONDS)
    return found
