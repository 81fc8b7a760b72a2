"""Runs the inference server: its socket, its key, and its end."""

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
from torchrl_ckpt.plugin_api.engines import Engine, MortalEngine
from torchrl_ckpt.plugin_api.errors import RecipeError
from torchrl_ckpt.plugin_api.models import Model
from torchrl_ckpt.serving_api.keys import is_loopback, published_key
from torchrl_ckpt.serving_api.listener import open_listener

_log = logging.getLogger(__name__)

_GRACE_SECONDS = 30

# Longer than any client keeps a connection (httpx 5 s, openai 5 s): the side that closes it must be
# the one that knows whether a request is on its way.
_KEEP_ALIVE_SECONDS = 75


class EngineGone(Exception):
    """The engine died under the server. No mistake of the user's: whoever runs the server may
    start it again."""


def serve(
    config: InferenceConfig,
    *,
    model: Model,
    engine: Engine,
    key: str | None,
    allowed_dirs: Sequence[Path],
    sockets: Sequence[socket.socket] | None = None,
) -> None:
    """Serve until SIGTERM or SIGINT; requests that are under way are answered first.

    `key` is the one from the environment; None makes a random one and leaves it for this user's
    other processes while the server runs. `sockets` are bound already (by `open_listener`, or inherited).
    Raises `EngineGone` where the engine dies; `AddressInUse`; and `RecipeError` for a server that
    the network reaches without a key of its own, and for a `weight_update` that the engine cannot
    do.
    """
    if key is None and not is_loopback(config.host):
        raise RecipeError(
            f"inference.host = {config.host!r} can be reached from other machines, so it needs a "
            f"key: set the environment variable {config.api_key_env} here and for the orchestrator"
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
        )
        server = EngineBoundServer(
            uvicorn.Config(
                app,
                log_config=None,
                access_log=False,
                timeout_graceful_shutdown=_GRACE_SECONDS,
                timeout_keep_alive=_KEEP_ALIVE_SECONDS,
            ),
            engine,
        )
        _log.info("serving %s on http://%s:%d", config.model.type, host, port)
        server.run(sockets=list(sockets))
        if server.failure is not None:
            raise EngineGone(server.failure)


@contextlib.contextmanager
def _stoppable() -> Iterator[None]:
    """SIGTERM and SIGINT leave the block instead of killing the process.

    While uvicorn runs it takes them itself, ends in peace, and passes them on to us when there is
    nothing left to do.
    """

    def leave(number: int, frame: FrameType | None) -> None:
        raise _Stopped

    signals = (signal.SIGTERM, signal.SIGINT)
    previous = [signal.signal(number, leave) for number in signals]
    try:
        yield
    except _Stopped:
        _log.info("stopped")
    finally:
        for number, handler in zip(signals, previous, strict=True):
            signal.signal(number, handler)


class _Stopped(BaseException):
    """Someone asked the server to stop."""


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
