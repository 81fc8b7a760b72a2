"""The HTTP application: OpenAI's routes on an engine, and the weights behind a key."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

from fastapi import Depends, FastAPI

from torchrl_ckpt.contracts import Engine, Tokenizer
from torchrl_ckpt.exchange.completions import Health, ServedModel, ServedModels
from torchrl_ckpt.inference.body_limit import BodyLimit
from torchrl_ckpt.inference.chat import chat_routes
from torchrl_ckpt.inference.completions import completion_routes
from torchrl_ckpt.inference.failures import answer_failures
from torchrl_ckpt.inference.generating import Generator
from torchrl_ckpt.inference.serving import ServedPolicy
from torchrl_ckpt.inference.weights import requires_key, weight_routes


def build_app(
    engine: Engine,
    tokenizer: Tokenizer,
    *,
    model_name: str,
    key: str,
    open_to_all: bool,
    allowed_dirs: Sequence[Path],
    max_body_bytes: int = 32 * 1024 * 1024,
) -> FastAPI:
    """The application on a started `engine`.

    `open_to_all` lets anyone who reaches it generate; otherwise that takes the key, too.
    """
    app = FastAPI(title="torchrl-ckpt inference", openapi_url=None)
    app.add_middleware(BodyLimit, max_bytes=max_body_bytes)
    answer_failures(app)

    policy = ServedPolicy(engine)
    generator = Generator(policy, tokenizer, model_name)
    generating = [] if open_to_all else [Depends(requires_key(key))]
    app.include_router(completion_routes(generator), dependencies=generating)
    app.include_router(chat_routes(generator), dependencies=generating)
    app.include_router(weight_routes(policy, key, allowed_dirs))
    started = int(time.time())

    @app.get("/v1/models", dependencies=generating)
    async def models() -> ServedModels:
        return ServedModels(data=[ServedModel(id=model_name, created=started)])

    @app.get("/health")
    async def health() -> Health:
        return Health()

    return app
