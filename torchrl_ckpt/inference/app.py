"""The HTTP application: OpenAI's routes on an engine, and the weights behind a key."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from fastapi import Depends, FastAPI

from torchrl_ckpt.config.inference import InferenceConfig
from torchrl_ckpt.inference.completion_service import CompletionService
from torchrl_ckpt.inference.http_errors import answer_failures
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
    """The application on a started `engine`.

    On loopback anyone may generate and look at the metrics; elsewhere that takes the key, too.
    """
    policy = ServedPolicy(engine, keep=config.weight_update == "keep")
    admission = Admission(max_running=config.max_running, max_queued=config.max_queued)
    metrics = ServerMetrics(admission, policy)
    generator = CompletionService(
        policy,
        tokenizer,
        admission,
        model_name=str(config.model.options.get("name", config.model.type)),
        max_sequences=config.max_sequences,
        on_usage=metrics.count_tokens,
    )

    # No pages of documentation, and no redirect to a path that differs in a slash: whatever is no
    # route is an error in the one form.
    app = FastAPI(title="torchrl-ckpt inference", openapi_url=None, redirect_slashes=False)
    app.add_middleware(BodyLimit, max_bytes=config.max_body_bytes)
    app.add_middleware(CountRequests, metrics=metrics)
    answer_failures(app)

    with_key = [Depends(requires_key(key))]
    with_key_from_afar = [] if is_loopback(config.host) else with_key
    app.include_router(weight_routes(policy, metrics, allowed_dirs), dependencies=with_key)
    for router in (
        completion_routes(generator),
        chat_routes(generator),
        model_routes(generator),
        metric_routes(metrics),
    ):
        app.include_router(router, dependencies=with_key_from_afar)

    @app.get("/health")
    async def health() -> Health:
        policy.check_alive()
        return Health()

    return app
