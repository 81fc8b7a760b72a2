"""uvicorn's server, which ends as soon as the engine behind it has died."""

from __future__ import annotations

import logging

import uvicorn

from torchrl_ckpt.contracts import Engine, MortalEngine

# What is under way waits for a dead engine; only its answers "500" still have to go out.
_GRACE_SECONDS = 1

_TICKS_PER_SECOND = 10  # uvicorn's

_log = logging.getLogger(__name__)


class EngineBoundServer(uvicorn.Server):
    """Serves until it is stopped, or until `engine` has died: `failure` says so then.

    A server whose engine is dead would look healthy for ever, and the process is what a job's
    runner can see and start again.
    """

    def __init__(self, config: uvicorn.Config, engine: Engine) -> None:
        super().__init__(config)
        self.failure: str | None = None
        self._engine = engine

    async def on_tick(self, counter: int) -> bool:
        if counter % _TICKS_PER_SECOND == 0 and isinstance(self._engine, MortalEngine):
            self.failure = self._engine.failure()
            if self.failure is not None:
                _log.error("the engine has died, and so the server ends: %s", self.failure)
                self.config.timeout_graceful_shutdown = _GRACE_SECONDS
                return True
        return await super().on_tick(counter)
