"""Several servers answer as one would, whichever of them dies or is taken by others."""

from __future__ import annotations

import asyncio
import contextlib
import signal
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import TypeVar

import pytest

from tests.orchestrator.conftest import Server
from tests.support.inference_server import KEY, wait_until_up
from torchrl_ckpt.config.orchestrator import ClientConfig
from torchrl_ckpt.orchestrator.server_pool import ServerPool
from torchrl_ckpt.plugin_api.engines import GenerationRequest, Sampling
from torchrl_ckpt.plugin_api.errors import ServerUnreachable
from torchrl_ckpt.run.progress import ProgressLog, ProgressMessage, ProgressTail
from torchrl_ckpt.run.weight_store import WeightStore
from torchrl_ckpt.serving_api.client import InferenceClient

T = TypeVar("T")

# Long enough for a server to be killed in the middle.
REQUESTS = [
    GenerationRequest([[5, 6, place, 3]] * 8, range(place * 8, place * 8 + 8), 8, Sampling(96))
    for place in range(6)
]


@pytest.fixture(scope="module")
def pair(start_server: Callable[[], Server]) -> Sequence[Server]:
    return start_server(), start_server()


@pytest.fixture
def servers(pair: Sequence[Server]) -> Sequence[Server]:
    """Two that are up."""
    for server in pair:
        server.lie("")
        if server.process.poll() is not None:
            server.start()
        wait_until_up(server)
    return pair


@pytest.fixture(autouse=True)
def _impatience(monkeypatch: pytest.MonkeyPatch) -> None:
    # The sockets of these servers outlive them: a dead one looks like one that hangs.
    monkeypatch.setattr("torchrl_ckpt.serving_api.client._LONGEST_HEALTH_SECONDS", 5.0)


class Work:
    """A pool with its policies, and what it has told the person who watches."""

    def __init__(self, servers: Sequence[Server], root: Path, log: Path, timeout: float) -> None:
        self.weights = WeightStore(root / "published/weights")
        self.pool = ServerPool(
            ClientConfig(base_urls=[server.base_url for server in servers], timeout=timeout),
            ProgressLog(log, "orchestrator"),
        )
        self._log = log

    async def serve(self, version: int = 0) -> None:
        policy = self.weights.read(version, attempt=1)
        assert policy is not None
        await self.pool.serve(policy, self.weights.path(version))

    async def complete(self) -> list[object]:
        """The samples of `REQUESTS`."""
        completed = await self.pool.complete(REQUESTS, lambda request: None)
        return [answer.samples for answer in completed]

    def messages(self) -> list[str]:
        events = ProgressTail(self._log).read()
        return [event.message for event in events if isinstance(event, ProgressMessage)]


@pytest.fixture
def work(root: Path, tmp_path: Path) -> Callable[..., T]:
    """Runs a scenario with a pool of some servers."""

    def run(
        servers: Sequence[Server],
        scenario: Callable[[Work], Awaitable[T]],
        timeout: float = 300,
    ) -> T:
        async def scene() -> T:
            work = Work(servers, root, tmp_path / "progress.jsonl", timeout)
            async with contextlib.aclosing(work.pool):
                return await scenario(work)

        return asyncio.run(scene())

    return run


@pytest.fixture
def expected(servers: Sequence[Server], work: Callable[..., list]) -> list:
    """What one server answers that nobody disturbs."""

    async def scenario(work: Work) -> list:
        await work.serve()
        return await work.complete()

    return work(servers[:1], scenario)


async def until_both_work(work: Work) -> None:
    while not all(server.num_in_flight for server in work.pool._servers):
        await asyncio.sleep(0.01)


def test_the_requests_are_shared_and_the_answers_are_those_of_one_server(
    servers: Sequence[Server], expected: list, work: Callable
) -> None:
    async def scenario(work: Work) -> None:
        await work.serve()
        answers = asyncio.create_task(work.complete())
        await until_both_work(work)
        assert [server.num_in_flight for server in work.pool._servers] == [3, 3]
        assert await answers == expected
        assert work.messages() == []

    work(servers, scenario)


def test_what_a_killed_server_owed_is_asked_of_the_other(
    servers: Sequence[Server], expected: list, work: Callable
) -> None:
    async def scenario(work: Work) -> None:
        await work.serve()
        answers = asyncio.create_task(work.complete())
        await until_both_work(work)
        servers[1].kill()
        assert await answers == expected
        (message,) = work.messages()
        assert f"the inference server {servers[1].base_url} is not there" in message

    work(servers, scenario)


def test_a_server_that_is_back_is_sent_the_policy_and_checked_before_it_gets_work(
    servers: Sequence[Server], work: Callable
) -> None:
    async def scenario(work: Work) -> None:
        await work.serve(0)
        servers[1].kill()
        await work.serve(1)  # goes on without it
        servers[1].start()
        async with InferenceClient(servers[1].base_url, key=KEY, timeout=300) as client:
            while (await loaded(client)) != 1:
                await work.complete()
        assert work.messages()[-1] == (
            f"the inference server {servers[1].base_url} is back, and checked"
        )

    work(servers, scenario)


async def loaded(client: InferenceClient) -> int | None:
    with contextlib.suppress(ServerUnreachable):
        return (await client.loaded()).version
    return None


def test_the_only_server_restarted_while_it_works_is_waited_for(
    servers: Sequence[Server], expected: list, work: Callable
) -> None:
    async def scenario(work: Work) -> None:
        await work.serve()
        answers = asyncio.create_task(work.complete())
        await until_both_work(work)
        servers[0].kill()
        await asyncio.sleep(1)
        servers[0].start()
        assert await answers == expected
        lost, back = work.messages()
        assert "wait until it is back" in lost
        assert "is back, and checked" in back

    work(servers[:1], scenario)


def test_a_server_that_hangs_is_left_out(
    servers: Sequence[Server], expected: list, work: Callable
) -> None:
    async def scenario(work: Work) -> None:
        await work.serve()
        answers = asyncio.create_task(work.complete())
        await until_both_work(work)
        servers[1].process.send_signal(signal.SIGSTOP)
        assert await answers == expected
        assert "did not say within 5 s whether it is well" in work.messages()[0]

    try:
        work(servers, scenario)
    finally:
        servers[1].kill()


def test_none_left_ends_with_what_each_said_last(servers: Sequence[Server], work: Callable) -> None:
    async def scenario(work: Work) -> None:
        await work.serve()
        for server in servers:
            server.kill()
        await work.complete()

    with pytest.raises(ServerUnreachable) as caught:
        work(servers, scenario, timeout=2)
    message = str(caught.value)
    assert message.startswith("no inference server for 2 s (`orchestrator.client.timeout`)")
    for server in servers:
        assert f"\n  {server.base_url}: " in message


def test_a_server_that_has_not_answered_is_not_said_to_be_well(
    servers: Sequence[Server], work: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def silence(client: InferenceClient) -> None:
        await asyncio.sleep(60)

    async def scenario(work: Work) -> None:
        await work.serve()
        servers[0].kill()
        monkeypatch.setattr(InferenceClient, "check_health", silence)
        await work.complete()

    with pytest.raises(ServerUnreachable, match=r"^no inference server for 2 s") as caught:
        work(servers[:1], scenario, timeout=2)
    assert f"{servers[0].base_url}: it served the policy, and has not been heard of" in str(
        caught.value
    )
