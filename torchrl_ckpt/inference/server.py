"""Runs the inference server: its socket, its key, and its shutdown."""

from __future__ import annotations

import contextlib
import logging
import secrets
import signal
import socket
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import FrameType

import torch
import uvicorn

from torchrl_ckpt.config.inference import InferenceConfig
from torchrl_ckpt.inference.app import build_app
from torchrl_ckpt.inference.connections import (
    Connections,
    bounded_connections,
    max_connections,
)
from torchrl_ckpt.plugin_api import heartbeat
from torchrl_ckpt.plugin_api.engines import Engine, FailureReportingEngine
from torchrl_ckpt.plugin_api.errors import RecipeError
from torchrl_ckpt.plugin_api.models import Model
from torchrl_ckpt.serving_api.keys import is_loopback, published_key
from torchrl_ckpt.serving_api.listener import open_listener

_log = logging.getLogger(__name__)

_SHUTDOWN_SECONDS = 30

# Running requests wait for the dead engine in vain; only their error responses must still be sent.
_DEAD_ENGINE_SHUTDOWN_SECONDS = 1

# Longer than clients keep an idle connection (httpx and openai: 5 s). The client must be the side
# that closes it, since only the client knows whether a request is on its way.
_KEEP_ALIVE_SECONDS = 75

_TICKS_PER_SECOND = 10  # of `uvicorn.Server.on_tick`
_TICKS_BETWEEN_DEADLINES = 5


class EngineFailed(Exception):
    """The engine failed for good under the server. This is not the user's mistake, so the server
    may be started again."""


def serve(
    config: InferenceConfig,
    *,
    model: Model,
    engine: Engine,
    key: str | None,
    allowed_dirs: Sequence[Path],
    sockets: Sequence[socket.socket] | None = None,
    in_job: bool = False,
) -> None:
    """Serve until SIGTERM or SIGINT; running requests are answered first.

    `key` is the key from the environment; None generates one and leaves it in a file for this
    user's other processes while the server runs. Of a server `in_job`, everything but `/health`
    needs it. `sockets` are listening already; None opens one at the configured address. Raises
    `EngineFailed`; `AddressInUse`; `RecipeError` for a server that can be reached from other
    machines without a key in the environment, and for a `weight_update` that the engine does not
    support.
    """
    if key is None and not is_loopback(config.host):
        raise RecipeError(
            f"inference.host = {config.host!r} can be reached from other machines, so the server "
            f"needs a key: set the environment variable {config.api_key_env} here and for the "
            "orchestrator"
        )
    if config.weight_update == "keep" and not engine.swaps_in_flight:
        raise RecipeError(
            f"inference.weight_update = 'keep', but the engine {config.engine.type!r} cannot "
            "change its weights while it generates: use 'wait'"
        )
    with contextlib.ExitStack() as resources:
        if sockets is None:
            sockets = [resources.enter_context(open_listener(config.host, config.port))]
        host, port = sockets[0].getsockname()[:2]
        resources.enter_context(_stoppable())
        resources.callback(engine.close)
        torch.manual_seed(config.seed)
        engine.start(model, max_length=config.max_length, threads=config.threads)
        if key is None:
            key = secrets.token_urlsafe(32)
            resources.enter_context(published_key(config.host, port, key))
        app = build_app(
            config,
            engine=engine,
            tokenizer=model.tokenizer(),
            key=key,
            allowed_dirs=allowed_dirs,
            in_job=in_job,
        )
        connections = Connections(
            max_open=max_connections(config.max_running + config.max_queued),
            client_timeout=config.client_timeout,
        )
        server = EngineBoundServer(
            uvicorn.Config(
                app,
                http=bounded_connections(connections),
                ws="none",
                log_config=None,
                access_log=False,
                timeout_graceful_shutdown=_SHUTDOWN_SECONDS,
                timeout_keep_alive=_KEEP_ALIVE_SECONDS,
            ),
            engine,
            connections,
        )
        _log.info("serving %s on http://%s:%d", config.model.type, host, port)
        server.run(sockets=list(sockets))
        if server.failure is not None:
            raise EngineFailed(server.failure)


class EngineBoundServer(uvicorn.Server):
    """A server that also shuts down once `engine` has failed for good, for the reason `failure`.

    A launcher sees that a process has ended, and starts it again; a server that outlived its engine
    would only refuse requests.
    """

    def __init__(self, config: uvicorn.Config, engine: Engine, connections: Connections) -> None:
        super().__init__(config)
        self.failure: str | None = None
        self._engine = engine
        self._connections = connections

    async def on_tick(self, counter: int) -> bool:
        heartbeat.beat_if_idle()
        if counter % _TICKS_BETWEEN_DEADLINES == 0:
            self._connections.end_overdue()
        if counter % _TICKS_PER_SECOND == 0 and isinstance(self._engine, FailureReportingEngine):
            self.failure = self._engine.failure()
            if self.failure is not None:
                _log.error("the engine has died, so the server exits: %s", self.failure)
                self.config.timeout_graceful_shutdown = _DEAD_ENGINE_SHUTDOWN_SECONDS
                return True
        return await super().on_tick(counter)


@contextlib.contextmanager
def _stoppable() -> Iterator[None]:
    """Let SIGTERM and SIGINT leave the block instead of killing the process.

    While uvicorn runs it handles both signals itself, shuts down, and then raises them again here.
    """

    def stop(number: int, frame: FrameType | None) -> None:
        raise _Stopped

    signals = (signal.SIGTERM, signal.SIGINT)
    previous = [signal.signal(number, stop) for number in signals]
    try:
        yield
    except _Stopped:
        _log.info("stopped")
    finally:
        for number, handler in zip(signals, previous, strict=True):
            signal.signal(number, handler)


class _Stopped(BaseException):
    """A signal asked the server to stop."""
