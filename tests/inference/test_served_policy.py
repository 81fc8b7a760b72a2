"""The order of generation and loads, whose tokens are whose, and what a failed load leaves."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
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
    """The weights that drew the one sample of a request."""
    [(_, spans)] = await policy.generate(REQUEST)
    return spans


def _http(engine: ScriptedEngine, root: Path, **options: object) -> httpx.AsyncClient:
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
        base_url="http://server",
        headers={"Authorization": f"Bearer {KEY}"},
    )


def test_a_load_waits_for_running_requests_and_later_ones_wait_for_it() -> None:
    async def scenario() -> tuple[list[str], list[int | None]]:
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
        return engine.events, [span.version for [span] in spans]

    events, versions = asyncio.run(scenario())
    assert versions == [1, 1, 2]
    assert events[:6] == [*["generating"] * 2, *["generated"] * 2, "loading", "loaded"]
    assert sorted(events[6:]) == ["generated", "generating", "scored", "scoring"]


def test_the_version_rises_only_after_the_load() -> None:
    async def scenario() -> None:
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

    asyncio.run(scenario())


def test_every_load_has_a_name_of_its_own() -> None:
    async def scenario() -> None:
        policy = ServedPolicy(ScriptedEngine([4, 5]))
        assert await generate(policy) == [PolicySpan(version=None, weights_id=None, num_tokens=2)]
        first = await policy.load(Path("/a"), 1)
        assert await policy.loaded() == first
        again = await policy.load(Path("/a"), 1)
        assert first.weights_id is not None
        assert again.weights_id not in (None, first.weights_id)
        assert await generate(policy) == [
            PolicySpan(version=1, weights_id=again.weights_id, num_tokens=2)
        ]

    asyncio.run(scenario())


@pytest.mark.parametrize("keep", [False, True])
@pytest.mark.parametrize("fault", FAULTS)
def test_after_a_load_failed_half_way_nothing_is_generated_until_one_succeeds(
    fault: BaseException, keep: bool
) -> None:
    async def scenario() -> None:
        engine = ScriptedEngine([4], swaps_in_flight=keep)
        policy = ServedPolicy(engine, update_in_flight=keep)
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

    asyncio.run(scenario())


def _kept(
    scenario: Callable[[ScriptedEngine, ServedPolicy, asyncio.Task], Awaitable[None]],
) -> None:
    """Run `scenario` on a request that has drawn two of five tokens by policy 1, with `keep`."""

    async def run() -> None:
        engine = ScriptedEngine([4, 5, 6, 7, 8], swaps_in_flight=True)
        policy = ServedPolicy(engine, update_in_flight=True)
        await policy.load(Path("/a"), 1)
        engine.stepwise = True
        request = asyncio.create_task(generate(policy))
        engine.step(2)
        await settle()
        await scenario(engine, policy, request)

    asyncio.run(run())


def test_a_request_that_is_kept_over_a_load_says_which_tokens_are_whose() -> None:
    async def scenario(engine: ScriptedEngine, policy: ServedPolicy, request: asyncio.Task) -> None:
        before = (await policy.loaded()).weights_id
        load = asyncio.create_task(policy.load(Path("/b"), 2))
        engine.step()  # while the load is under way: still the old weights
        await settle()
        engine.end_load()
        after = (await load).weights_id
        engine.step(2)
        assert await request == [
            PolicySpan(version=1, weights_id=before, num_tokens=3),
            PolicySpan(version=2, weights_id=after, num_tokens=2),
        ]

    _kept(scenario)


def test_a_request_is_begun_while_weights_change_but_no_score_is() -> None:
    async def scenario(engine: ScriptedEngine, policy: ServedPolicy, request: asyncio.Task) -> None:
        load = asyncio.create_task(policy.load(Path("/b"), 2))
        await settle()
        begun = asyncio.create_task(generate(policy))
        score = asyncio.create_task(policy.score([[4]]))
        await settle()
        assert engine.events.count("generating") == 2
        assert "scoring" not in engine.events
        engine.end_load()
        engine.step(8)
        _, by = await score
        assert by.version == 2
        assert [span.version for span in await request] == [1, 2]
        assert [span.version for span in await begun] == [2]
        await load

    _kept(scenario)


def test_weights_that_do_not_fit_leave_kept_requests_alone() -> None:
    async def scenario(engine: ScriptedEngine, policy: ServedPolicy, request: asyncio.Task) -> None:
        engine.fault = ModelError("no good")
        engine.end_load()
        with pytest.raises(ModelError):
            await policy.load(Path("/b"), 2)
        engine.step(3)
        [span] = await request
        assert (span.version, span.num_tokens) == (1, 5)

    _kept(scenario)


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("drawn_after", [0, 3])
def test_a_load_that_fails_half_way_ends_kept_requests(
    fault: BaseException, drawn_after: int
) -> None:
    async def scenario(engine: ScriptedEngine, policy: ServedPolicy, request: asyncio.Task) -> None:
        engine.fault = fault
        engine.end_load()
        with pytest.raises((WeightsUnknown, asyncio.CancelledError)):
            await policy.load(Path("/b"), 2)
        engine.step(drawn_after)  # all that was left to draw, by nobody knows which weights
        with pytest.raises(WeightsUnknown, match="failed half-way"):
            await request
        assert engine.events[-1] == ("generated" if drawn_after else "cancelled")

    _kept(scenario)


def test_an_engine_that_does_not_tell_of_all_its_tokens_is_not_believed() -> None:
    class Silent(ScriptedEngine):
        async def _draw(self, request: GenerationRequest, on_tokens: object) -> None: ...

    with pytest.raises(RuntimeError, match="not report every token"):
        asyncio.run(generate(ServedPolicy(Silent([4], swaps_in_flight=True), update_in_flight=True)))


def test_keep_with_an_engine_that_cannot_is_refused_at_the_start(tmp_path: Path) -> None:
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


def test_a_failed_load_and_a_crash_are_told_without_their_inside(tmp_path: Path) -> None:
    async def scenario() -> None:
        engine = ScriptedEngine([4])
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


@pytest.mark.parametrize("lost", [False, True])
def test_a_stream_that_fails_ends_with_the_error(lost: bool, tmp_path: Path) -> None:
    """Once it has begun, its status cannot say it any more."""

    async def scenario() -> str:
        engine = ScriptedEngine([4, 5, 6], swaps_in_flight=True)
        async with _http(engine, tmp_path, weight_update="keep") as http:
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
            return (await stream).text

    first, error, end = asyncio.run(scenario()).split("\n\n")
    assert '"text":"a"' in first
    assert error.startswith('data: {"error":{"message":')
    assert ("weights_unknown" in error) == lost
    assert "secret" not in error
    assert end == ""
