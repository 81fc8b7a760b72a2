"""The HTTP application: OpenAI's routes, and those that load and report weights."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from fastapi import FastAPI

from torchrl_ckpt.config.inference import InferenceConfig
from torchrl_ckpt.inference.admission import Admission
from torchrl_ckpt.inference.bodies import BoundedBodies
from torchrl_ckpt.inference.completion_service import CompletionService
from torchrl_ckpt.inference.gate import AllowedHosts, Gate
from torchrl_ckpt.inference.http_errors import install_error_handlers
from torchrl_ckpt.inference.metrics import CountRequests, ServerMetrics, metric_routes
from torchrl_ckpt.inference.routes.chat import chat_routes
from torchrl_ckpt.inference.routes.completions import completion_routes
from torchrl_ckpt.inference.routes.models import model_routes
from torchrl_ckpt.inference.routes.weights import WEIGHTS, weight_routes
from torchrl_ckpt.inference.served_policy import ServedPolicy
from torchrl_ckpt.inference.side_thread import SideThread
from torchrl_ckpt.plugin_api.engines import Engine
from torchrl_ckpt.plugin_api.models import Tokenizer
from torchrl_ckpt.serving_api.keys import is_loopback
from torchrl_ckpt.serving_api.protocol import Health

HEALTH = "/health"


def build_app(
    config: InferenceConfig,
    *,
    engine: Engine,
    tokenizer: Tokenizer,
    key: str,
    allowed_dirs: Sequence[Path],
    in_job: bool = False,
) -> FastAPI:
    """Return the application that serves a started `engine`.

    `/weights` needs the key. Of a server `in_job`, and of one whose `config.host` can be reached
    from other machines, everything but `/health` does.
    """
    key_everywhere = in_job or not is_loopback(config.host)
    side_thread = SideThread()
    policy = ServedPolicy(engine, update_in_flight=config.weight_update == "keep")
    admission = Admission(max_running=config.max_running, max_queued=config.max_queued)
    metrics = ServerMetrics(admission, policy)
    service = CompletionService(
        policy,
        tokenizer,
        admission,
        side_thread,
        model_name=str(config.model.options.get("name", config.model.type)),
        max_sequences=config.max_sequences,
        on_usage=metrics.count_tokens,
    )

    # No documentation pages, and no redirect to a path that differs in a slash: any other path than
    # those of the routes gets an error in OpenAI's form.
    app = FastAPI(title="torchrl-ckpt inference", openapi_url=None, redirect_slashes=False)
    app.add_middleware(BoundedBodies, max_bytes=config.max_body_bytes)
    app.add_middleware(
        Gate,
        hosts=AllowedHosts(config.host, config.allowed_hosts),
        key=key,
        # Not `==`: a route also matches its path with a line feed after it (`/weights%0A`).
        needs_key=lambda path: path != HEALTH if key_everywhere else path.startswith(WEIGHTS),
    )
    app.add_middleware(CountRequests, metrics=metrics)
    install_error_handlers(app)
    for router in (
        weight_routes(policy, metrics, allowed_dirs, side_thread),
        completion_routes(service, side_thread, config.client_timeout),
        chat_routes(service, side_thread, config.client_timeout),
        model_routes(service),
        metric_routes(metrics),
    ):
        app.include_router(router)

    @app.get(HEALTH)
    async def health() -> Health:
        policy.check_alive()
        return Health()

    return app
