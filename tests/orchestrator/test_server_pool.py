"""Several servers answer as one would, whichever of them dies or is restarted."""

from __future__ import annotations

import asyncio
import contextlib
import signal
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path

import pytest
import pytest_asyncio

from tests.support.inference_server import KEY
from tests.support.policies import PolicyPool, policy_pool
from tests.support.restartable_server import RestartableServer
from torchrl_ckpt.plugin_api.engines import GenerationRequest, Sampling
from torchrl_ckpt.plugin_api.errors import ServerUnreachable
from torchrl_ckpt.serving_api.client import InferenceClient
from torchrl_ckpt.serving_api.protocol import Choice

# Long enough for a server to be killed in the middle.
REQUESTS = [
    GenerationRequest([[5, 6, i, 3]] * 8, range(i * 8, i * 8 + 8), 8, Sampling(96))
    for i in range(6)
]

# A killed server looks like one that hangs: its socket stays open.
HEALTH_TIMEOUT = 5.0


@pytest.fixture(scope="module", name="pair")
def start_pair(
    start_server: Callable[[], RestartableServer],
) -> Sequence[RestartableServer]:
    return start_server(), start_server()


@pytest.fixture(name="servers")
def make_both_ready(pair: Sequence[RestartableServer]) -> Sequence[RestartableServer]:
    """Two servers that are up."""
    for server in pair:
        server.ensure_up()
    return pair


@pytest_asyncio.fixture(scope="module", loop_scope="module", name="expected")
async def complete_undisturbed(
    pair: Sequence[RestartableServer],
    published_run: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> list[list[Choice]]:
    """The choices of a single, undisturbed server."""
    pair[0].ensure_up()
    progress = tmp_path_factory.mktemp("expected") / "progress.jsonl"
    async with policy_pool([pair[0].base_url], published_run, progress) as pool:
        await pool.serve()
        return await pool.complete(REQUESTS)


@pytest_asyncio.fixture(name="pool")
async def open_pool(
    servers: Sequence[RestartableServer], published_run: Path, tmp_path: Path
) -> AsyncIterator[PolicyPool]:
    """A pool of both servers."""
    async with policy_pool(
        [server.base_url for server in servers],
        published_run,
        tmp_path / "progress.jsonl",
        health_timeout=HEALTH_TIMEOUT,
    ) as pool:
        yield pool


async def until_all_work(pool: PolicyPool) -> None:
    """Return once every server has a request in flight."""
    while not all(server.num_in_flight for server in pool.pool.servers):
        await asyncio.sleep(0.01)


async def loaded_version(client: InferenceClient) -> int | None:
    with contextlib.suppress(ServerUnreachable):
        return (await client.loaded()).version
    return None


async def test_requests_are_shared_and_the_answers_are_those_of_one_server(
    pool: PolicyPool, expected: list[list[Choice]]
) -> None:
    await pool.serve()
    completing = asyncio.create_task(pool.complete(REQUESTS))
    await until_all_work(pool)
    assert [server.num_in_flight for server in pool.pool.servers] == [3, 3]
    assert await completing == expected
    assert pool.messages() == []


async def test_the_requests_of_a_killed_server_go_to_the_other(
    pool: PolicyPool, servers: Sequence[RestartableServer], expected: list[list[Choice]]
) -> None:
    await pool.serve()
    completing = asyncio.create_task(pool.complete(REQUESTS))
    await until_all_work(pool)
    servers[1].kill()
    assert await completing == expected
    (message,) = pool.messages()
    assert f"the inference server {servers[1].base_url} is not there" in message


async def test_a_restarted_server_is_attested_before_it_gets_requests(
    pool: PolicyPool, servers: Sequence[RestartableServer]
) -> None:
    await pool.serve(0)
    servers[1].kill()
    await pool.serve(1)  # Continues without it.
    servers[1].start()
    async with InferenceClient(servers[1].base_url, key=KEY, timeout=300) as client:
        while await loaded_version(client) != 1:
            await pool.complete(REQUESTS)
    assert pool.messages()[-1] == (
        f"the inference server {servers[1].base_url} is back, and verified"
    )


async def test_the_only_server_is_waited_for_while_it_restarts(
    servers: Sequence[RestartableServer],
    expected: list[list[Choice]],
    published_run: Path,
    tmp_path: Path,
) -> None:
    async with policy_pool(
        [servers[0].base_url], published_run, tmp_path / "log", health_timeout=HEALTH_TIMEOUT
    ) as pool:
        await pool.serve()
        completing = asyncio.create_task(pool.complete(REQUESTS))
        await until_all_work(pool)
        servers[0].kill()
        await asyncio.sleep(1)
        servers[0].start()
        assert await completing == expected
        lost, *_, back = pool.messages()
    assert "wait until it is back" in lost
    assert "is back, and verified" in back


async def test_a_server_that_hangs_is_left_out(
    pool: PolicyPool, servers: Sequence[RestartableServer], expected: list[list[Choice]]
) -> None:
    try:
        await pool.serve()
        completing = asyncio.create_task(pool.complete(REQUESTS))
        await until_all_work(pool)
        servers[1].process.send_signal(signal.SIGSTOP)
        assert await completing == expected
        assert "did not answer the health check within 5 s" in pool.messages()[0]
    finally:
        servers[1].kill()


async def test_the_end_of_all_servers_is_an_error_with_the_last_message_about_each(
    servers: Sequence[RestartableServer], published_run: Path, tmp_path: Path
) -> None:
    urls = [server.base_url for server in servers]
    async with policy_pool(urls, published_run, tmp_path / "log", timeout=2) as pool:
        await pool.serve()
        for server in servers:
            server.kill()
        with pytest.raises(ServerUnreachable) as caught:
            await pool.complete(REQUESTS)
    message = str(caught.value)
    assert message.startswith("no inference server for 2 s (`orchestrator.client.timeout`)")
    for url in urls:
        assert f"\n  {url}: " in message


async def test_a_silent_server_is_not_reported_as_healthy(
    servers: Sequence[RestartableServer], published_run: Path, tmp_path: Path
) -> None:
    url = servers[0].base_url
    async with policy_pool(
        [url], published_run, tmp_path / "log", timeout=2, health_timeout=60
    ) as pool:
        await pool.serve()
        servers[0].kill()
        with pytest.raises(ServerUnreachable, match=r"^no inference server for 2 s") as caught:
            await pool.complete(REQUESTS)
    assert f"{url}: it served the policy, and no error was reported since" in str(caught.value)
