"""The HTTP application: OpenAI's routes, and those that load and report weights."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from fastapi import Depends, FastAPI

from torchrl_ckpt.config.inference import InferenceConfig
from torchrl_ckpt.inference.completion_service import CompletionService
from torchrl_ckpt.inference.http_errors import install_error_handlers
from torchrl_ckpt.inference.limits import Admission, BodyLimit
from torchrl_ckpt.inference.metrics import CountRequests, ServerMetrics, metric_routes
from torchrl_ckpt.inference.routes.chat import chat_routes
from torchrl_ckpt.inference.routes.completions import completion_routes
from torchrl_ckpt.inference.routes.models import model_routes
from torchrl_ckpt.inference.routes.weights import requires_key, weight_routes
from torchrl_ckpt.inference.served_policy import ServedPolicy
from torchrl_ckpt.plugin_api.engines import Engine
from torchrl_ckpt.plugin_api.models import Tokenizer
from torchrl_ckpt.serving_api.keys import is_loopback
from torchrl_ckpt.serving_api.protocol import Health


def build_app(
    config: InferenceConfig,
    *,
    engine: Engine,
    tokenizer: Tokenizer,
    key: str,
    allowed_dirs: Sequence[Path],
) -> FastAPI:
    """Return the application that serves a started `engine`.

    `/weights` needs the key. Generation and metrics need it only if `config.host` can be reached
    from other machines.
    """
    policy = ServedPolicy(engine, update_in_flight=config.weight_update == "keep")
    admission = Admission(max_running=config.max_running, max_queued=config.max_queued)
    metrics = ServerMetrics(admission, policy)
    service = CompletionService(
        policy,
        tokenizer,
        admission,
        model_name=str(config.model.options.get("name", config.model.type)),
        max_sequences=config.max_sequences,
        on_usage=metrics.count_tokens,
    )

    # No documentation pages, and no redirect to a path that differs in a slash: any other path than
    # those of the routes gets an error in OpenAI's form.
    app = FastAPI(title="torchrl-ckpt inference", openapi_url=None, redirect_slashes=False)
    app.add_middleware(BodyLimit, max_bytes=config.max_body_bytes)
    app.add_middleware(CountRequests, metrics=metrics)
    install_error_handlers(app)

    with_key = [Depends(requires_key(key))]
    with_key_if_public = [] if is_loopback(config.host) else with_key
    app.include_router(weight_routes(policy, metrics, allowed_dirs), dependencies=with_key)
    for router in (
        completion_routes(service),
        chat_routes(service),
        model_routes(service),
        metric_routes(metrics),
    ):
        app.include_router(router, dependencies=with_key_if_public)

    @app.get("/health")
    async def health() -> Health:
        policy.check_alive()
        return Health()

    return app
