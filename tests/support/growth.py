"""Bounds on what a fuzz test may take, however odd its inputs."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from typing import Any, TypeVar

import psutil

T = TypeVar("T", bound=Callable[..., None])

_MAX_GROWTH_BYTES = 150 * 1024 * 1024
_MAX_SECONDS = 300.0


def bounded() -> Callable[[T], T]:
    """A decorator: all examples of a test together take bounded time and memory of this process."""

    def decorate(test: T) -> T:
        @functools.wraps(test)
        def measured(*args: Any, **kwargs: Any) -> None:
            process = psutil.Process()
            before, began = process.memory_info().rss, time.monotonic()
            test(*args, **kwargs)
            assert process.memory_info().rss - before < _MAX_GROWTH_BYTES
            assert time.monotonic() - began < _MAX_SECONDS

        return measured  # type: ignore[return-value]

    return decorate
