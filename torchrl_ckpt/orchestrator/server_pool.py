"""The inference servers of a job: loads the policy on each, distributes requests, handles failures.

It does not matter which server answers: a request to attested weights gives the same samples on
every server. So a request that fails with its server is sent again, to another server or to the
same one when it is back.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from pathlib import Path

from torchrl_ckpt.config.orchestrator import ClientConfig
from torchrl_ckpt.orchestrator.attestation import Attestation
from torchrl_ckpt.orchestrator.pooled_server import CHECK_INTERVAL_SECONDS, PooledServer
from torchrl_ckpt.plugin_api.engines import GenerationRequest
from torchrl_ckpt.plugin_api.errors import ServerUnreachable, WrongPolicy
from torchrl_ckpt.run.progress import Notices, ProgressLog
from torchrl_ckpt.run.weight_store import Policy
from torchrl_ckpt.serving_api.client import KeyRefused, RequestFailed, ServerBusy, ServerLost
from torchrl_ckpt.serving_api.protocol import Completion

# A server of the job's own may take so long to start; later notices are warnings.
_WARNING_SECONDS = 20.0

# A request that fails so often is probably what kills the servers.
_REQUEST_TRIES = 5

# One foreign answer may come from a load of ours that seemed lost; a second one means another job.
_FOREIGN_ANSWER_TRIES = 2


class ServerPool:
    """The servers that `config` names, monitored while a policy is loaded or requests are pending.

    A server that cannot be used, for whatever reason, is left out and retried. Methods raise
    `ServerUnreachable` where no server is there, or none answers, for `config.timeout` seconds;
    `WrongPolicy` as soon as any server fails its attestation, or answers with other weights twice
    under one policy; `KeyRefused` as soon as one refuses the key, which only the user can correct.

    No sequence of a canary is sent with more than `longest` tokens, which every server must take.
    `health_timeout` (seconds) bounds a health check; None leaves it to `InferenceClient`.
    """

    def __init__(
        self,
        config: ClientConfig,
        progress: ProgressLog,
        *,
        health_timeout: float | None = None,
        longest: int | None = None,
    ) -> None:
        self.servers = [
            PooledServer(base_url, config, health_timeout=health_timeout)
            for base_url in config.servers
        ]
        self._timeout = config.timeout
        self._longest = longest
        self._progress = progress
        self._policy: Policy | None = None
        self._previous: Policy | None = None
        self._directory = Path()
        self._latest_success = 0.0
        self._notices = Notices()
        self._changed = asyncio.Event()

    async def serve(self, policy: Policy, directory: Path) -> Attestation:
        """Return once every available server is attested to serve `policy`, and at least one is.

        A server that loads slowly is waited for while its health checks succeed, up to
        `config.timeout`. Returns the attestation with the largest difference.
        """
        if self._longest is not None:
            policy = replace(policy, canary=policy.canary.cut(self._longest))
        self._previous, self._policy, self._directory = self._policy, policy, directory
        for server in self.servers:
            server.attestation, server.num_foreign_answers = None, 0
        async with self._monitored():
            while not self._attestations() or any(map(_is_expected, self.servers)):
                if self._attestations() and self._is_overdue():
                    self._give_up_on_slow_servers()
                    break
                await self._wait_for_change()
        return max(self._attestations(), key=lambda attestation: attestation.max_difference)

    async def complete(
        self,
        requests: Sequence[GenerationRequest],
        on_completion: Callable[[GenerationRequest], None],
    ) -> list[Completion]:
        """Return the completions of the current policy, in the order of `requests`.

        `on_completion` is called with each request as it is completed.
        """

        async def complete(request: GenerationRequest) -> Completion:
            completion = await self._complete(request)
            on_completion(request)
            return completion

        async with self._monitored() as group:
            tasks = [group.create_task(complete(request)) for request in requests]
            pending = set(tasks)
            while pending:
                # A request has no limit of its own: it may wait for all those before it.
                _, pending = await asyncio.wait(pending, timeout=CHECK_INTERVAL_SECONDS)
                self._check_progress()
        return [task.result() for task in tasks]

    async def aclose(self) -> None:
        for server in self.servers:
            await server.close()

    async def _complete(self, request: GenerationRequest) -> Completion:
        tries = 0
        while tries < _REQUEST_TRIES:
            server = await self._least_loaded()
            attestation = server.attestation
            try:
                completion = await server.complete(request)
            except ServerBusy as busy:
                server.defer(busy, busy.retry_after)
            except RequestFailed as error:
                tries += 1
                # Prefer other servers, if there are any. A health check tells whether it has died.
                server.defer(error, CHECK_INTERVAL_SECONDS)
            except KeyRefused:
                raise
            except (ServerUnreachable, WrongPolicy) as error:
                tries += 1
                # Another request may have noticed before, and the server be attested anew by now.
                if server.attestation is attestation:
                    self._withdraw(server, error)
            else:
                self._latest_success = time.monotonic()
                return completion
        raise ServerUnreachable(
            f"a request failed {_REQUEST_TRIES} times, the last time on {server.base_url}: "
            f"{server.last_message}. The request itself may be what makes the servers fail; see "
            "their logs"
        )

    async def _least_loaded(self) -> PooledServer:
        """Return the attested server with the fewest requests in flight, of several the first."""
        while True:
            now = time.monotonic()
            ready = [s for s in self.servers if s.attestation and s.busy_until <= now]
            if ready:
                return min(ready, key=lambda server: server.num_in_flight)
            await self._wait_for_change()

    @asynccontextmanager
    async def _monitored(self) -> AsyncIterator[asyncio.TaskGroup]:
        """Run a `_monitor` for each server during the block."""
        self._latest_success, self._notices = time.monotonic(), Notices()
        try:
            async with asyncio.TaskGroup() as group:
                monitors = [group.create_task(self._monitor(server)) for server in self.servers]
                yield group
                for monitor in monitors:
                    monitor.cancel()
        except BaseExceptionGroup as errors:
            raise errors.exceptions[0] from None

    async def _monitor(self, server: PooledServer) -> None:
        """Attest `server` and check its health; after a failed check attest it again."""
        assert self._policy is not None
        while True:
            attestation = server.attestation
            try:
                if attestation is not None:
                    await server.check_health()
                else:
                    was_missed = self._is_missed(server)
                    await server.attest(self._policy, self._directory, self._previous)
                    self._admit(server, was_missed)
            except ServerBusy as busy:
                server.defer(busy, busy.retry_after)
                await asyncio.sleep(busy.retry_after)
            except KeyRefused:
                raise
            except ServerUnreachable as error:
                if server.attestation is attestation:
                    self._withdraw(server, error)
            await self._pause()

    def _admit(self, server: PooledServer, was_missed: bool) -> None:
        """Let requests go to `server`, which has just been attested."""
        self._latest_success = time.monotonic()
        if was_missed:
            self._progress.message(f"the inference server {server.base_url} is back, and verified")
        self._notify_change()

    def _withdraw(self, server: PooledServer, error: ServerUnreachable | WrongPolicy) -> None:
        """Use `server` no more until it is attested again; raise a repeated `WrongPolicy`."""
        if isinstance(error, WrongPolicy):
            server.attestation = None
            server.num_foreign_answers += 1
            if server.num_foreign_answers == _FOREIGN_ANSWER_TRIES:
                raise error
            self._progress.message(
                f"the policy is loaded on {server.base_url} again: {error}", "warning"
            )
        elif server.is_lost:
            server.mark_lost(str(error))
            return
        else:
            server.mark_lost(str(error))
            if self._is_missed(server) or not isinstance(error, ServerLost):
                self._progress.message(
                    f"the inference server {server.base_url} {_state_after(error)}: {error}. Its "
                    "requests go to other servers, or wait until it is back",
                    "warning",
                )
        self._notify_change()

    def _is_missed(self, server: PooledServer) -> bool:
        """Whether it is lost, unless it is the only server and has not started yet."""
        return server.is_lost and (server.was_used or len(self.servers) > 1)

    def _attestations(self) -> list[Attestation]:
        return [server.attestation for server in self.servers if server.attestation is not None]

    def _notify_change(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()

    async def _pause(self) -> None:
        """Wait until a server has become usable or unusable, at most the check interval."""
        # Not `asyncio.wait_for`, which may swallow a cancellation (Python 3.11).
        with suppress(TimeoutError):
            async with asyncio.timeout(CHECK_INTERVAL_SECONDS):
                await self._changed.wait()

    async def _wait_for_change(self) -> None:
        self._check_progress()
        await self._pause()

    def _give_up_on_slow_servers(self) -> None:
        for server in filter(_is_expected, self.servers):
            server.is_given_up = True
            self._withdraw(
                server,
                ServerUnreachable(
                    f"it is healthy, but did not serve the policy within {self._timeout:.0f} s "
                    f"(`orchestrator.client.timeout`); its last message: {server.last_message}"
                ),
            )

    def _is_overdue(self) -> bool:
        return time.monotonic() > self._latest_success + self._timeout

    def _check_progress(self) -> None:
        """Raise `ServerUnreachable` where nothing has succeeded for `config.timeout` seconds.

        Before that, tell the user what is waited for.
        """
        waited = time.monotonic() - self._latest_success
        if not any(server.is_up for server in self.servers) and self._notices.is_due(waited):
            urls = ", ".join(server.base_url for server in self.servers)
            self._progress.message(
                f"waiting for an inference server at {urls} for {waited:.0f} s, up to "
                f"{self._timeout:.0f} s (`orchestrator.client.timeout`): "
                f"{self.servers[0].last_message}",
                "info" if waited < _WARNING_SECONDS else "warning",
            )
        if self._is_overdue():
            if any(s.attestation and s.healthy_at > self._latest_success for s in self.servers):
                raise ServerUnreachable(
                    f"no inference server has completed a request for {self._timeout:.0f} s "
                    "(`orchestrator.client.timeout`), though their health checks succeed. See "
                    "their logs, raise the timeout, or send smaller requests "
                    "(`orchestrator.client.prompts_per_request`)"
                )
            messages = "".join(
                f"\n  {server.base_url}: {server.last_message}" for server in self.servers
            )
            raise ServerUnreachable(
                f"no inference server for {self._timeout:.0f} s (`orchestrator.client.timeout`). "
                "Start one with `inference @ RECIPE`, give the job an `[inference]` section, or "
                "set `orchestrator.client.base_url` or `base_urls`. The last message about each "
                f"server:{messages}"
            )


def _is_expected(server: PooledServer) -> bool:
    """Whether it is not attested yet, and likely to be soon."""
    if server.attestation is not None or server.is_given_up:
        return False
    return server.is_up or not server.is_lost


def _state_after(error: ServerUnreachable) -> str:
    return "is not there" if isinstance(error, ServerLost) else "cannot be used"
