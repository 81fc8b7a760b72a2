"""The order of requests and loads, which weights drew which tokens, and loads that fail."""

from __future__ import annotations

import asyncio
import math
from pathlib import Path

import httpx
import pytest

from tests.support.inference_server import KEY
from tests.support.scripted_engine import ScriptedEngine
from tests.support.tiny_model import tiny_model
from torchrl_ckpt.config.inference import InferenceConfig
from torchrl_ckpt.inference.app import build_app
from torchrl_ckpt.inference.http_errors import WeightsUnknown
from torchrl_ckpt.inference.served_policy import ServedPolicy
from torchrl_ckpt.inference.server import serve
from torchrl_ckpt.plugin_api.engines import GenerationRequest, Sampling
from torchrl_ckpt.plugin_api.errors import ModelError, RecipeError
from torchrl_ckpt.serving_api.protocol import PolicySpan

REQUEST = GenerationRequest([[4]], [0], 1, Sampling(4))
FAULTS = [RuntimeError("torn"), asyncio.CancelledError()]


async def settle() -> None:
    """Let every task run until it waits for something."""
    for _ in range(20):
        await asyncio.sleep(0)


async def generate(policy: ServedPolicy) -> list[PolicySpan]:
    """Generate one sample and return its policy spans."""
    [(_, spans)] = await policy.generate(REQUEST)
    return spans


def open_client(engine: ScriptedEngine, root: Path, **options: object) -> httpx.AsyncClient:
    """A client of an application on `engine` in this process, with the key."""
    config = {"output_dir": root, "model": {"type": "transformers"}, **options}
    app = build_app(
        InferenceConfig.model_validate(config),
        engine=engine,
        tokenizer=tiny_model().tokenizer(),
        key=KEY,
        allowed_dirs=[root],
    )
    return httpx.AsyncClient(
        transport=httpx.ASGITransport(app, raise_app_exceptions=False),
        base_url="http://localhost",
        headers={"Authorization": f"Bearer {KEY}"},
    )


class InFlight:
    """A request that has drawn two of five tokens by policy 1, with updates in flight."""

    def __init__(self) -> None:
        self.engine = ScriptedEngine([4, 5, 6, 7, 8], swaps_in_flight=True)
        self.policy = ServedPolicy(self.engine, update_in_flight=True)

    async def begin(self) -> asyncio.Task[list[PolicySpan]]:
        await self.policy.load(Path("/a"), 1)
        self.engine.stepwise = True
        request = asyncio.create_task(generate(self.policy))
        self.engine.step(2)
        await settle()
        return request


async def test_a_load_waits_for_running_requests_and_later_ones_wait_for_it() -> None:
    engine = ScriptedEngine([4, 5])
    policy = ServedPolicy(engine)
    await policy.load(Path("/a"), 1)
    engine.events.clear()
    engine.stepwise = True
    early = [asyncio.create_task(generate(policy)) for _ in range(2)]
    await settle()
    load = asyncio.create_task(policy.load(Path("/b"), 2))
    await settle()
    late = asyncio.create_task(generate(policy))
    score = asyncio.create_task(policy.score([[4]]))
    engine.end_load()
    await settle()
    engine.step(6)
    spans = await asyncio.gather(*early, late)
    await asyncio.gather(load, score)
    assert [span.version for [span] in spans] == [1, 1, 2]
    assert engine.events[:6] == [*["generating"] * 2, *["generated"] * 2, "loading", "loaded"]
    assert sorted(engine.events[6:]) == ["generated", "generating", "scored", "scoring"]


async def test_the_version_changes_only_after_a_successful_load() -> None:
    engine = ScriptedEngine([4])
    policy = ServedPolicy(engine)
    assert (await policy.loaded()).version is None
    engine.fault = ModelError("no good")
    with pytest.raises(ModelError):
        await policy.load(Path("/a"), 1)
    assert (await policy.loaded()).version is None
    engine.fault = None
    await policy.load(Path("/a"), 1)
    assert (await policy.loaded()).version == 1


async def test_every_load_has_its_own_weights_id() -> None:
    policy = ServedPolicy(ScriptedEngine([4, 5]))
    assert await generate(policy) == [PolicySpan(version=None, weights_id=None, num_tokens=2)]
    first = await policy.load(Path("/a"), 1)
    assert await policy.loaded() == first
    second = await policy.load(Path("/a"), 1)
    assert first.weights_id is not None
    assert second.weights_id not in (None, first.weights_id)
    assert await generate(policy) == [
        PolicySpan(version=1, weights_id=second.weights_id, num_tokens=2)
    ]


@pytest.mark.parametrize("update_in_flight", [False, True])
@pytest.mark.parametrize("fault", FAULTS)
async def test_after_a_load_failed_half_way_nothing_is_generated_until_one_succeeds(
    fault: BaseException, update_in_flight: bool
) -> None:
    engine = ScriptedEngine([4], swaps_in_flight=update_in_flight)
    policy = ServedPolicy(engine, update_in_flight=update_in_flight)
    await policy.load(Path("/a"), 1)
    engine.fault = fault
    with pytest.raises((WeightsUnknown, asyncio.CancelledError)):
        await policy.load(Path("/b"), 2)
    loaded = await policy.loaded()
    assert (loaded.version, loaded.weights_id, loaded.directory) == (None, None, None)
    with pytest.raises(WeightsUnknown):
        await generate(policy)
    with pytest.raises(WeightsUnknown):
        await policy.score([[4]])
    engine.fault = None
    await policy.load(Path("/c"), 3)
    [span] = await generate(policy)
    assert span.version == 3


async def test_a_request_in_flight_records_which_weights_drew_which_tokens() -> None:
    in_flight = InFlight()
    engine, policy = in_flight.engine, in_flight.policy
    request = await in_flight.begin()
    before = (await policy.loaded()).weights_id
    load = asyncio.create_task(policy.load(Path("/b"), 2))
    engine.step()  # drawn during the load, so by the old weights
    await settle()
    engine.end_load()
    after = (await load).weights_id
    engine.step(2)
    assert await request == [
        PolicySpan(version=1, weights_id=before, num_tokens=3),
        PolicySpan(version=2, weights_id=after, num_tokens=2),
    ]


async def test_during_an_update_in_flight_generation_starts_but_scoring_waits() -> None:
    in_flight = InFlight()
    engine, policy = in_flight.engine, in_flight.policy
    request = await in_flight.begin()
    load = asyncio.create_task(policy.load(Path("/b"), 2))
    await settle()
    later = asyncio.create_task(generate(policy))
    score = asyncio.create_task(policy.score([[4]]))
    await settle()
    assert engine.events.count("generating") == 2
    assert "scoring" not in engine.events
    engine.end_load()
    engine.step(8)
    _, weights = await score
    assert weights.version == 2
    assert [span.version for span in await request] == [1, 2]
    assert [span.version for span in await later] == [2]
    await load


async def test_weights_that_do_not_fit_do_not_disturb_requests_in_flight() -> None:
    in_flight = InFlight()
    engine, policy = in_flight.engine, in_flight.policy
    request = await in_flight.begin()
    engine.fault = ModelError("no good")
    engine.end_load()
    with pytest.raises(ModelError):
        await policy.load(Path("/b"), 2)
    engine.step(3)
    [span] = await request
    assert (span.version, span.num_tokens) == (1, 5)


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("drawn_after", [0, 3])
async def test_a_load_that_fails_half_way_ends_requests_in_flight(
    fault: BaseException, drawn_after: int
) -> None:
    in_flight = InFlight()
    engine, policy = in_flight.engine, in_flight.policy
    request = await in_flight.begin()
    engine.fault = fault
    engine.end_load()
    with pytest.raises((WeightsUnknown, asyncio.CancelledError)):
        await policy.load(Path("/b"), 2)
    engine.step(drawn_after)  # the rest of the request, by unknown weights
    with pytest.raises(WeightsUnknown, match="failed half-way"):
        await request
    assert engine.events[-1] == ("generated" if drawn_after else "cancelled")


async def test_an_engine_that_does_not_report_all_its_tokens_is_an_error() -> None:
    engine = ScriptedEngine([4], swaps_in_flight=True, reports_tokens=False)
    with pytest.raises(RuntimeError, match="not report every token"):
        await generate(ServedPolicy(engine, update_in_flight=True))


def test_an_update_in_flight_is_refused_at_the_start_if_the_engine_cannot_do_it(
    tmp_path: Path,
) -> None:
    config = InferenceConfig(
        port=0, output_dir=tmp_path, model={"type": "transformers"}, weight_update="keep"
    )
    with pytest.raises(RecipeError, match=r"weight_update = 'keep'.*use 'wait'"):
        serve(
            config,
            model=tiny_model(),
            engine=ScriptedEngine([]),
            key=KEY,
            allowed_dirs=[tmp_path],
        )


async def test_errors_of_a_failed_load_and_of_a_crash_show_nothing_internal(tmp_path: Path) -> None:
    engine = ScriptedEngine([4])
    async with open_client(engine, tmp_path) as http:
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


@pytest.mark.parametrize("lost", [False, True])
async def test_a_stream_that_fails_ends_with_the_error(lost: bool, tmp_path: Path) -> None:
    """Once it has begun, its status is sent already."""
    engine = ScriptedEngine([4, 5, 6], swaps_in_flight=True)
    async with open_client(engine, tmp_path, weight_update="keep") as http:
        if lost:
            engine.stepwise, engine.fault = True, RuntimeError("secret inside")
            engine.step()
            engine.end_load()
        else:
            engine.crash = RuntimeError("secret inside")
        stream = asyncio.create_task(
            http.post("/v1/completions", json={"prompt": "ab>", "stream": True})
        )
        await settle()
        if lost:
            body = {"directory": str(tmp_path), "version": 3}
            assert (await http.post("/weights", json=body)).status_code == 503
        first, error, end = (await stream).text.split("\n\n")
    assert '"text":"a"' in first
    assert error.startswith('data: {"error":{"message":')
    assert ("weights_unknown" in error) == lost
    assert "secret" not in error
    assert end == ""


@pytest.mark.parametrize("number", [math.nan, -math.inf])
async def test_numbers_that_are_not_finite_are_an_error_of_the_server(
    number: float, tmp_path: Path
) -> None:
    engine = ScriptedEngine([4, 5])
    engine.logprob = engine.scored_logprob = number
    asked = {"prompt": "ab>", "logprobs": 1}
    async with open_client(engine, tmp_path) as http:
        for more in (
            {},
            {"stop": ["b"]},
            {"stream": True},
            {"echo": True, "max_tokens": 0},
        ):
            answer = await http.post("/v1/completions", json=asked | more)
            assert answer.status_code == 500
            assert answer.json()["error"]["code"] == "not_finite"
            assert "dtype" in answer.json()["error"]["message"]
        engine.logprob = engine.scored_logprob = -0.5
        answer = await http.post("/v1/completions", json=asked)
        assert answer.json()["choices"][0]["logprobs"]["token_logprobs"] == [-0.5, -0.5]
