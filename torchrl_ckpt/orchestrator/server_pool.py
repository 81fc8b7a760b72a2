"""The inference servers of a job: who serves the policy, who gets a request, who is lost.

Which server answers does not matter: a request to attested weights gives the same samples
everywhere. So one that is lost with its server is asked again elsewhere, or when one is back.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path

from torchrl_ckpt.config.orchestrator import ClientConfig
from torchrl_ckpt.orchestrator.attestation import Attested
from torchrl_ckpt.orchestrator.pooled_server import Completed, PooledServer
from torchrl_ckpt.plugin_api.engines import GenerationRequest
from torchrl_ckpt.plugin_api.errors import ServerUnreachable, WrongPolicy
from torchrl_ckpt.run.progress import ProgressLog
from torchrl_ckpt.run.weight_store import Policy
from torchrl_ckpt.serving_api.client import KeyRefused, RequestFailed, ServerBusy, ServerLost

_CHECK_SECONDS = 1.0

# A request that is asked so often in vain is what kills the servers.
_TRIES = 5

# Once may be a load of ours that was thought lost; a second time is another job.
_STRANGE_LOADS = 2


class ServerPool:
    """The servers that `config` names. They are watched while something is wanted of them.

    One that cannot be used, for whatever reason, is left to itself and tried again. Raises
    `ServerUnreachable` where none is there, or none answers, for `config.timeout` seconds;
    `WrongPolicy` as soon as any of them serves other weights than it was told to; `KeyRefused` as
    soon as one refuses the key, which nobody but the user can mend.
    """

    def __init__(self, config: ClientConfig, progress: ProgressLog) -> None:
        self._servers = [PooledServer(base_url, config) for base_url in config.servers]
        self._timeout = config.timeout
        self._progress = progress
        self._policy: Policy | None = None
        self._previous: Policy | None = None
        self._directory = Path()
        self._latest_success = 0.0
        self._news = asyncio.Event()

    async def serve(self, policy: Policy, directory: Path) -> Attested:
        """Return once every server that is there demonstrably serves `policy`, and at least one is.

        One that loads slowly is waited for, as long as it says that it is well and not longer than
        `config.timeout`. Of their attestations it returns the one that was furthest off.
        """
        self._previous, self._policy, self._directory = self._policy, policy, directory
        for server in self._servers:
            server.attested, server.num_strange_loads = None, 0
        async with self._watch():
            while not self._attested() or any(map(_is_to_come, self._servers)):
                if self._attested() and self._is_overdue():
                    self._give_up_on_the_slow()
                    break
                await self._wait_for_news()
        return max(self._attested(), key=lambda attested: attested.max_difference)

    async def complete(
        self, requests: Sequence[GenerationRequest], on_answer: Callable[[GenerationRequest], None]
    ) -> list[Completed]:
        """The answers of the policy that is served, in the order of `requests`."""

        async def ask(request: GenerationRequest) -> Completed:
            completed = await self._complete(request)
            on_answer(request)
            return completed

        async with self._watch() as group:
            answers = [group.create_task(ask(request)) for request in requests]
            left = set(answers)
            while left:
                # A request has no limit of its own: it may wait for all those before it.
                _, left = await asyncio.wait(left, timeout=_CHECK_SECONDS)
                self._check_progress()
        return [answer.result() for answer in answers]

    async def aclose(self) -> None:
        for server in self._servers:
            await server.close()

    async def _complete(self, request: GenerationRequest) -> Completed:
        tries = 0
        while tries < _TRIES:
            server = await self._least_loaded()
            attested = server.attested
            try:
                completed = await server.generate(request)
            except ServerBusy as busy:
                server.defer(busy, busy.retry_after)
            except RequestFailed as error:
                tries += 1
                # Others first, if there are any. If the server has died, its health will say so.
                server.defer(error, _CHECK_SECONDS)
            except KeyRefused:
                raise
            except (ServerUnreachable, WrongPolicy) as error:
                tries += 1
                # Unless another request has noticed before, and the server is another by now.
                if server.attested is attested:
                    self._withdraw(server, error)
            else:
                self._latest_success = time.monotonic()
                return completed
        raise ServerUnreachable(
            f"a request was asked {_TRIES} times in vain, the last time of {server.base_url}: "
            f"{server.said}. It may be what the servers die of; see their logs"
        )

    async def _least_loaded(self) -> PooledServer:
        """The attested server with the fewest requests in flight, of several the first."""
        while True:
            now = time.monotonic()
            ready = [s for s in self._servers if s.attested and s.busy_until <= now]
            if ready:
                return min(ready, key=lambda server: server.num_in_flight)
            await self._wait_for_news()

    @asynccontextmanager
    async def _watch(self) -> AsyncIterator[asyncio.TaskGroup]:
        """Look after the servers in the block: attest, check, give up, take up again."""
        self._latest_success = time.monotonic()
        try:
            async with asyncio.TaskGroup() as group:
                keepers = [group.create_task(self._keep(server)) for server in self._servers]
                yield group
                for keeper in keepers:
                    keeper.cancel()
        except BaseExceptionGroup as errors:
            raise errors.exceptions[0] from None

    async def _keep(self, server: PooledServer) -> None:
        assert self._policy is not None
        while True:
            attested = server.attested
            try:
                if attested is not None:
                    await server.check()
                else:
                    missed = self._is_missed(server)
                    await server.attest(self._policy, self._directory, self._previous)
                    self._take_up(server, missed)
            except ServerBusy as busy:
                server.defer(busy, busy.retry_after)
                await asyncio.sleep(busy.retry_after)
            except KeyRefused:
                raise
            except ServerUnreachable as error:
                if server.attested is attested:
                    self._withdraw(server, error)
            await self._pause()

    def _take_up(self, server: PooledServer, missed: bool) -> None:
        self._latest_success = time.monotonic()
        if missed:
            self._progress.message(f"the inference server {server.base_url} is back, and checked")
        self._tell()

    def _withdraw(self, server: PooledServer, error: ServerUnreachable | WrongPolicy) -> None:
        if isinstance(error, WrongPolicy):
            server.attested = None
            server.num_strange_loads += 1
            if server.num_strange_loads == _STRANGE_LOADS:
                raise error
            self._progress.message(
                f"{server.base_url} is sent the policy once more: {error}", "warning"
            )
        elif server.is_lost:
            server.lose(str(error))
            return
        else:
            server.lose(str(error))
            if self._is_missed(server) or not isinstance(error, ServerLost):
                self._progress.message(
                    f"the inference server {server.base_url} {_trouble(error)}: {error}. Its "
                    "requests go elsewhere, or wait until it is back",
                    "warning",
                )
        self._tell()

    def _is_missed(self, server: PooledServer) -> bool:
        """Whether it is lost, and not just the only one, which has yet to come up."""
        return server.is_lost and (server.was_used or len(self._servers) > 1)

    def _attested(self) -> list[Attested]:
        return [server.attested for server in self._servers if server.attested is not None]

    def _tell(self) -> None:
        self._news.set()
        self._news = asyncio.Event()

    async def _pause(self) -> None:
        """Until a server has become or ceased to be usable, but not for long."""
        # Not `wait_for`, which may swallow a cancellation (Python 3.11).
        with suppress(TimeoutError):
            async with asyncio.timeout(_CHECK_SECONDS):
                await self._news.wait()

    async def _wait_for_news(self) -> None:
        self._check_progress()
        await self._pause()

    def _give_up_on_the_slow(self) -> None:
        for server in filter(_is_to_come, self._servers):
            server.is_given_up = True
            self._withdraw(
                server,
                ServerUnreachable(
                    f"it is well, but did not serve the policy within {self._timeout:.0f} s "
                    f"(`orchestrator.client.timeout`); last it said: {server.said}"
                ),
            )

    def _is_overdue(self) -> bool:
        return time.monotonic() > self._latest_success + self._timeout

    def _check_progress(self) -> None:
        if self._is_overdue():
            if any(s.attested and s.well_at > self._latest_success for s in self._servers):
                raise ServerUnreachable(
                    f"no inference server has answered anything for {self._timeout:.0f} s "
                    "(`orchestrator.client.timeout`), though they say that they are well. See "
                    "their logs, raise the timeout, or ask for less at a time "
                    "(`orchestrator.client.prompts_per_request`)"
                )
            said = "".join(f"\n  {server.base_url}: {server.said}" for server in self._servers)
            raise ServerUnreachable(
                f"no inference server for {self._timeout:.0f} s (`orchestrator.client.timeout`). "
                "Start one with `inference @ RECIPE`, give the job an `[inference]` section, or "
                "set `orchestrator.client.base_url` or `base_urls`. What came of the latest "
                f"attempt:{said}"
            )


def _is_to_come(server: PooledServer) -> bool:
    """Whether it has yet to be attested, and there is reason to expect that."""
    if server.attested is not None or server.is_given_up:
        return False
    return server.is_up or not server.is_lost


def _trouble(error: ServerUnreachable) -> str:
    return "is not there" if isinstance(error, ServerLost) else "cannot be used"
