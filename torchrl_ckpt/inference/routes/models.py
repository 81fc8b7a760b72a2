"""`GET /v1/models` and `GET /v1/models/NAME`: the served model."""

from __future__ import annotations

import time

from fastapi import APIRouter

from torchrl_ckpt.inference.completion_service import CompletionService
from torchrl_ckpt.serving_api.protocol import ServedModel, ServedModels


def model_routes(service: CompletionService) -> APIRouter:
    """Return the routes that describe the model of `service`."""
    router = APIRouter()
    served = ServedModel(id=service.model_name, created=int(time.time()))

    @router.get("/v1/models")
    async def models() -> ServedModels:
        return ServedModels(data=[served])

    # A model's name may contain slashes.
    @router.get("/v1/models/{name:path}")
    async def model(name: str) -> ServedModel:
        service.check_model(name)
        return served

    return router
