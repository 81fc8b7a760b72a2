"""The order of generation and loads, and what is left when one of them fails."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path

import httpx
import pytest

from tests.inference.conftest import KEY, tiny_model
from torchrl_ckpt.contracts import Generation, Model, Sample, Sampling
from torchrl_ckpt.errors import ModelError
from torchrl_ckpt.inference.app import build_app
from torchrl_ckpt.inference.failures import WeightsUnknown
from torchrl_ckpt.inference.serving import ServedPolicy


class FakeEngine:
    """Records what it does; `fault` is raised by loads, and `crash` by generation."""

    plugin_api = 1

    def __init__(self) -> None:
        self.events: list[str] = []
        self.fault: BaseException | None = None
        self.crash: Exception | None = None

    def start(self, model: Model, *, max_length: int | None, threads: int) -> None: ...

    async def generate(self, request: Generation) -> list[list[Sample]]:
        if self.crash is not None:
            raise self.crash
        self.events.append("generating")
        await asyncio.sleep(0.02)
        self.events.append("generated")
        sample = Sample([4, 1], [-0.5, -0.5], "stop")
        return [[sample] * request.num_samples for _ in request.prompts]

    async def logprobs(self, sequences: Sequence[Sequence[int]]) -> list[list[float]]:
        return [[0.0] * (len(sequence) - 1) for sequence in sequences]

    async def load_weights(self, directory: Path) -> None:
        self.events.append("loading")
        await asyncio.sleep(0.02)
        if self.fault is not None:
            raise self.fault
        self.events.append("loaded")

    async def weights_digest(self) -> str | None:
        return None

    def close(self) -> None: ...


def _http(engine: FakeEngine, root: Path) -> httpx.AsyncClient:
    app = build_app(
        engine,
        tiny_model().tokenizer(),
        model_name="tiny",
        key=KEY,
        open_to_all=False,
        allowed_dirs=[root],
    )
    return httpx.AsyncClient(
        transport=httpx.ASGITransport(app, raise_app_exceptions=False),
        base_url="http://server",
        headers={"Authorization": f"Bearer {KEY}"},
    )


def test_a_load_waits_for_running_requests_and_later_ones_wait_for_it() -> None:
    async def scenario() -> tuple[list[str], list[int | None]]:
        engine = FakeEngine()
        policy = ServedPolicy(engine)
        await policy.load(Path("/a"), 1)
        engine.events.clear()

        async def use() -> int | None:
            async with policy.in_use() as version:
                await engine.generate(Generation([[4]], [0], 1, Sampling(1)))
                return version

        early = [asyncio.create_task(use()) for _ in range(2)]
        await asyncio.sleep(0.005)
        load = asyncio.create_task(policy.load(Path("/b"), 2))
        await asyncio.sleep(0.005)
        late = asyncio.create_task(use())
        versions = await asyncio.gather(*early, late)
        await load
        return engine.events, versions

    events, versions = asyncio.run(scenario())
    assert versions == [1, 1, 2]
    assert events == [
        *["generating"] * 2,
        *["generated"] * 2,
        "loading",
        "loaded",
        "generating",
        "generated",
    ]


def test_the_version_rises_only_after_the_load() -> None:
    async def scenario() -> None:
        engine = FakeEngine()
        policy = ServedPolicy(engine)
        assert (await policy.loaded()).version is None
        engine.fault = ModelError("no good")
        with pytest.raises(ModelError):
            await policy.load(Path("/a"), 1)
        assert (await policy.loaded()).version is None
        engine.fault = None
        await policy.load(Path("/a"), 1)
        assert (await policy.loaded()).version == 1

    asyncio.run(scenario())


@pytest.mark.parametrize("fault", [RuntimeError("torn"), asyncio.CancelledError()])
def test_after_a_load_failed_half_way_nothing_is_generated_until_one_succeeds(
    fault: BaseException,
) -> None:
    async def scenario() -> None:
        engine = FakeEngine()
        policy = ServedPolicy(engine)
        await policy.load(Path("/a"), 1)
        engine.fault = fault
        with pytest.raises((WeightsUnknown, asyncio.CancelledError)):
            await policy.load(Path("/b"), 2)
        assert (await policy.loaded()).version is None
        with pytest.raises(WeightsUnknown):
            async with policy.in_use():
                pass
        engine.fault = None
        await policy.load(Path("/c"), 3)
        async with policy.in_use() as version:
            assert version == 3

    asyncio.run(scenario())


def test_a_failed_load_and_a_crash_are_told_without_their_inside(tmp_path: Path) -> None:
    async def scenario() -> None:
        engine = FakeEngine()
        async with _http(engine, tmp_path) as http:
            body = {"directory": str(tmp_path), "version": 3}
            engine.fault = RuntimeError("secret inside")
            failed = await http.post("/weights", json=body)
            refused = await http.post("/v1/completions", json={"prompt": "ab>"})
            assert failed.status_code == refused.status_code == 503
            assert refused.json()["error"]["code"] == "weights_unknown"
            engine.fault, engine.crash = None, RuntimeError("secret inside")
            assert (await http.post("/weights", json=body)).json()["version"] == 3
            crashed = await http.post("/v1/completions", json={"prompt": "ab>"})
            assert crashed.status_code == 500
            assert crashed.json()["error"]["type"] == "server_error"
            assert "secret" not in failed.text + refused.text + crashed.text

    asyncio.run(scenario())


def test_a_server_that_the_network_reaches_generates_only_with_the_key(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with _http(FakeEngine(), tmp_path) as http:
            for path in ("/v1/completions", "/v1/chat/completions", "/weights"):
                answer = await http.post(path, json={}, headers={"Authorization": "Bearer x"})
                assert answer.status_code == 401, path
            assert (await http.get("/v1/models", headers={"Authorization": ""})).status_code == 401
            assert (await http.get("/v1/models")).status_code == 200

    asyncio.run(scenario())
