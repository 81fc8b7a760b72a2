"""The HTTP application: OpenAI's routes on an engine, and the weights behind a key."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from fastapi import Depends, FastAPI

from torchrl_ckpt.contracts import Engine, Tokenizer
from torchrl_ckpt.exchange.completions import Health
from torchrl_ckpt.exchange.keys import is_loopback
from torchrl_ckpt.inference.admission import Admission
from torchrl_ckpt.inference.body_limit import BodyLimit
from torchrl_ckpt.inference.chat import chat_routes
from torchrl_ckpt.inference.completions import completion_routes
from torchrl_ckpt.inference.failures import answer_failures
from torchrl_ckpt.inference.generating import Generator
from torchrl_ckpt.inference.metrics import CountRequests, ServerMetrics, metric_routes
from torchrl_ckpt.inference.models import model_routes
from torchrl_ckpt.inference.serving import ServedPolicy
from torchrl_ckpt.inference.weights import requires_key, weight_routes
from torchrl_ckpt.recipe.schema import Inference


def build_app(
    config: Inference,
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
    generator = Generator(
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
