"""One call of the engine's `generate`, between the event loop and the thread that decodes."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Sequence
from concurrent.futures import CancelledError
from typing import TYPE_CHECKING

from torchrl_ckpt.plugin_api.engines import DrawnTokens, OnTokens

if TYPE_CHECKING:
    import torch

    from torchrl_ckpt_transformers.decoding import Row


class Call:
    """Made on the event loop, to which it tells what each step on the other thread has drawn."""

    def __init__(self, on_tokens: OnTokens | None) -> None:
        self._on_tokens = on_tokens
        self._loop = asyncio.get_running_loop()
        self._over = threading.Event()

    def end(self) -> None:
        """Nothing more is told, and a decoding that still runs ends with its step."""
        self._over.set()

    def on_step(
        self,
        rows: Sequence[Row],
        places: torch.Tensor,
        tokens: torch.Tensor,
        logprobs: torch.Tensor,
    ) -> None:
        """The rows at `places` of `rows` drew `tokens`. Raises `CancelledError` after `end`."""
        if self._over.is_set():
            raise CancelledError
        if self._on_tokens is None:
            return
        drawn = [
            DrawnTokens(*rows[place], [token], [logprob])
            for place, token, logprob in zip(
                places.tolist(), tokens.tolist(), logprobs.tolist(), strict=True
            )
        ]
        # The samples take the same way to the loop at the end, so they come after their tokens.
        self._loop.call_soon_threadsafe(self._tell, self._on_tokens, drawn)

    def _tell(self, on_tokens: OnTokens, drawn: Sequence[DrawnTokens]) -> None:
        for tokens in drawn:
            if not self._over.is_set():
                on_tokens(tokens)
