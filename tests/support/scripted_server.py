"""An inference server in the test's own event loop, with scripted samples, and policies for it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import uvicorn

from tests.support.inference_server import KEY
from tests.support.rollouts import ATTEMPT_ID
from tests.support.scripted_engine import ScriptedEngine
from tests.support.tiny_model import tiny_model
from torchrl_ckpt.config.inference import InferenceConfig
from torchrl_ckpt.inference.app import build_app
from torchrl_ckpt.plugin_api.engines import GenerationRequest, OnTokens, Sample
from torchrl_ckpt.run.weight_store import Canary, Policy, WeightStore
from torchrl_ckpt.serving_api.listener import open_listener

CANARY = Canary([[1, 2, 3]], [[0.0, 0.0]], "float32")
"""What `ScriptedEngine` answers whatever its weights are."""


class PerSampleEngine(ScriptedEngine):
    """Sample j of every prompt is `samples[j]`. `requests` has all requests so far."""

    def __init__(self, samples: Sequence[Sequence[int]]) -> None:
        super().__init__([])
        self.samples = samples
        self.requests: list[GenerationRequest] = []

    async def generate(
        self, request: GenerationRequest, on_tokens: OnTokens | None = None
    ) -> list[list[Sample]]:
        self.requests.append(request)
        stops = request.sampling.stop_token_ids
        group = [
            Sample(
                list(tokens),
                [-0.25 * (1 + number)] * len(tokens),
                "stop" if tokens[-1] in stops else "length",
            )
            for number, tokens in enumerate(self.samples[: request.num_samples])
        ]
        return [group for _ in request.prompts]


def publish_scripted_policy(
    run: Path, version: int, *, attempt_id: str = ATTEMPT_ID, last: bool = False
) -> tuple[Policy, Path]:
    """Publish a policy that a scripted engine serves; return it and its directory."""
    policy = Policy(version, attempt_id, last, CANARY, None)
    store = WeightStore(run / "weights")
    store.write(version, lambda directory: None, policy)
    return policy, store.path(version)


@asynccontextmanager
async def scripted_server(engine: ScriptedEngine, allowed: Path) -> AsyncIterator[str]:
    """Serve `engine`, which may load directories below `allowed`; yield the base URL."""
    app = build_app(
        InferenceConfig(output_dir=allowed, model={"type": "transformers"}),
        engine=engine,
        tokenizer=tiny_model().tokenizer(),
        key=KEY,
        allowed_dirs=[allowed],
    )
    with open_listener("127.0.0.1", 0) as listener:
        server = uvicorn.Server(uvicorn.Config(app, log_config=None, access_log=False))
        serving = asyncio.create_task(server.serve(sockets=[listener]))
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            server.should_exit = True
            await serving
