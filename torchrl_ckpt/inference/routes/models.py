"""`GET /v1/models` and `/v1/models/NAME`: the one model that is served."""

from __future__ import annotations

import time

from fastapi import APIRouter

from torchrl_ckpt.inference.completion_service import CompletionService
from torchrl_ckpt.serving_api.protocol import ServedModel, ServedModels


def model_routes(generator: CompletionService) -> APIRouter:
    """The routes that tell `generator`'s model."""
    router = APIRouter()
    served = ServedModel(id=generator.model_name, created=int(time.time()))

    @router.get("/v1/models")
    async def models() -> ServedModels:
        return ServedModels(data=[served])

    # A model's name may have slashes.
    @router.get("/v1/models/{name:path}")
    async def model(name: str) -> ServedModel:
        generator.check_model(name)
        return served

    return router
