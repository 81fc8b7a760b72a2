"""A faulty server is left out, waited for or tried again; it does not end the run."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.faulty_proxy import FaultyProxy, fails, is_canary, is_generation
from tests.support.policies import policy_pool
from tests.support.restartable_server import RestartableServer
from torchrl_ckpt.plugin_api.engines import GenerationRequest, Sampling
from torchrl_ckpt.plugin_api.errors import ServerUnreachable
from torchrl_ckpt.serving_api.client import KeyRefused

pytestmark = pytest.mark.slow

REQUESTS = [GenerationRequest([[5, 6, index, 3]], [index], 2, Sampling(4)) for index in range(6)]


@pytest.fixture(scope="module", name="other")
def start_other_server(start_server: Callable[[], RestartableServer]) -> RestartableServer:
    """A good server besides the one behind the proxy."""
    return start_server()


class Run:
    """Serves policies with some servers and records what happened."""

    def __init__(self, published_run: Path, progress: Path) -> None:
        self.num_attested: list[int] = []
        self.messages: list[str] = []
        self._published_run = published_run
        self._progress = progress

    async def __call__(
        self,
        servers: list[FaultyProxy | RestartableServer],
        *versions: int,
        timeout: float = 60,
        health_timeout: float | None = None,
    ) -> None:
        """Serve each version in turn, and complete `REQUESTS` with it."""
        async with policy_pool(
            [server.base_url for server in servers],
            self._published_run,
            self._progress,
            timeout=timeout,
            health_timeout=health_timeout,
        ) as pool:
            for version in versions:
                await pool.serve(version)
                self.num_attested.append(pool.num_attested())
                assert len(await pool.complete(REQUESTS)) == len(REQUESTS)
            self.messages = pool.messages()


@pytest.fixture(name="run")
def make_run(published_run: Path, tmp_path: Path) -> Run:
    return Run(published_run, tmp_path / "progress.jsonl")


async def test_a_server_too_busy_for_the_canary_is_asked_again(
    proxy: FaultyProxy, run: Run
) -> None:
    proxy.fault = fails(2, 429, is_canary)
    await run([proxy], 0)
    assert run.num_attested == [1]


async def test_a_request_that_fails_is_sent_again(proxy: FaultyProxy, run: Run) -> None:
    proxy.fault = fails(3, 500, is_generation)
    await run([proxy], 0)
    assert run.num_attested == [1]
    assert run.messages == []  # The request has failed, not the server.


async def test_a_request_that_fails_everywhere_ends_the_run(proxy: FaultyProxy, run: Run) -> None:
    proxy.fault = fails(1000, 500, is_generation)
    with pytest.raises(ServerUnreachable, match="a request failed 5 times"):
        await run([proxy], 0)


@pytest.mark.parametrize(
    ("path", "status", "message"),
    [("/weights", 500, "cannot be used"), ("/health", 404, "is not there")],
)
async def test_the_other_servers_continue_without_a_server_of_invalid_answers(
    path: str, status: int, message: str, proxy: FaultyProxy, other: RestartableServer, run: Run
) -> None:
    proxy.fault = lambda method, asked, body: status if asked == path else None
    await run([other, proxy], 0, 1)
    assert run.num_attested == [1, 1]
    assert f"the inference server {proxy.base_url} {message}" in run.messages[0]


async def test_a_refused_key_ends_the_run(
    proxy: FaultyProxy, other: RestartableServer, run: Run
) -> None:
    proxy.fault = lambda method, path, body: 401 if path == "/weights" else None
    with pytest.raises(KeyRefused):
        await run([other, proxy], 0)


async def test_a_health_check_notices_a_server_that_hangs_in_a_load(
    proxy: FaultyProxy, other: RestartableServer, run: Run
) -> None:
    hanging = threading.Event()

    def hang(method: str, path: str, body: bytes) -> None:
        if path == "/weights":
            hanging.set()
        if hanging.is_set():
            time.sleep(20)

    proxy.fault = hang
    started = time.monotonic()
    await run([other, proxy], 0, timeout=600, health_timeout=1)
    assert time.monotonic() - started < 15
    assert run.num_attested == [1]
    assert "did not answer the health check within 1 s" in run.messages[0]


async def test_a_server_that_is_back_is_waited_for_however_slowly_it_loads(
    proxy: FaultyProxy, other: RestartableServer, published_run: Path, tmp_path: Path
) -> None:
    is_back = False

    def load_slowly(method: str, path: str, body: bytes) -> int | None:
        if path == "/weights" and is_back:
            time.sleep(4)
        return None if is_back else 500

    proxy.fault = load_slowly
    urls = [other.base_url, proxy.base_url]
    async with policy_pool(urls, published_run, tmp_path / "log", timeout=60) as pool:
        await pool.serve(0)
        assert pool.num_attested() == 1
        is_back = True
        while not pool.pool.servers[1].is_up:
            await pool.complete(REQUESTS)
        await pool.serve(1)
        assert pool.num_attested() == 2
        assert "is back, and verified" in pool.messages()[-1]


async def test_a_busy_server_is_given_up_where_others_serve_the_policy(
    proxy: FaultyProxy, other: RestartableServer, run: Run
) -> None:
    proxy.fault = lambda method, path, body: 429 if is_canary(path, body) else None
    started = time.monotonic()
    await run([other, proxy], 0, 1, timeout=4)
    assert time.monotonic() - started < 20  # It is waited for once.
    assert run.num_attested == [1, 1]
    assert "is healthy, but did not serve the policy within 4 s" in run.messages[0]


async def test_a_healthy_server_that_never_answers_a_request_ends_the_run(
    proxy: FaultyProxy, run: Run
) -> None:
    proxy.fault = lambda method, path, body: time.sleep(8 if is_generation(path, body) else 0)
    with pytest.raises(ServerUnreachable, match="has completed a request for 3 s"):
        await run([proxy], 0, timeout=3)
