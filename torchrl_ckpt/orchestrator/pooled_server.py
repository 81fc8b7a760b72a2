"""One inference server as the orchestrator sees it: health, attestation, requests in flight."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

from torchrl_ckpt.config.orchestrator import ClientConfig
from torchrl_ckpt.orchestrator.attestation import Attestation, CanaryAnswer, attest
from torchrl_ckpt.plugin_api.engines import GenerationRequest
from torchrl_ckpt.plugin_api.errors import ServerUnreachable, WrongPolicy
from torchrl_ckpt.run.weight_store import Policy
from torchrl_ckpt.serving_api.client import InferenceClient, KeyRefused, ServerLost
from torchrl_ckpt.serving_api.keys import find_key
from torchrl_ckpt.serving_api.protocol import Completion

CHECK_INTERVAL_SECONDS = 1.0


class PooledServer:
    """The server at `base_url`, which gets requests while it has an `attestation`.

    `attestation` is of the current policy; None while the server must not be used.
    `is_lost`: it has failed and was not attested since.
    `is_up`: it has answered a health check since it was lost.
    `is_given_up`: it answered health checks, but did not serve the policy in time.
    `was_used`: it was attested at least once.
    `last_message`: what is known about it, for the error message if no server is left.
    `healthy_at`, `busy_until`: when it last answered a health check, and the time before which it
    gets no request, both in seconds of `time.monotonic()`.
    `num_foreign_answers`: how often it answered with weights other than the attested ones under
    the current policy.

    `health_timeout` is that of the `InferenceClient`.
    """

    def __init__(
        self, base_url: str, config: ClientConfig, *, health_timeout: float | None
    ) -> None:
        self.base_url = base_url
        self.attestation: Attestation | None = None
        self.is_lost = False
        self.is_up = False
        self.is_given_up = False
        self.was_used = False
        self.last_message = "nothing yet"
        self.healthy_at = 0.0
        self.busy_until = 0.0
        self.num_foreign_answers = 0
        self._config = config
        self._health_timeout = health_timeout
        self._key: str | None = None
        self._client = self._make_client()
        self._requests: set[asyncio.Task[Completion]] = set()
        self._latest_answer: CanaryAnswer | None = None

    @property
    def num_in_flight(self) -> int:
        return len(self._requests)

    async def attest(self, policy: Policy, directory: Path, previous: Policy | None) -> None:
        """Make it serve `policy` and verify that it does. Raises as `attestation.attest` does."""
        await self.check_health()
        await self._update_key()
        self._client.vocabulary = _vocabulary(directory)
        attesting = attest(
            self._client,
            policy,
            directory,
            tolerance=self._config.canary_tolerance,
            previous=previous,
            latest_answer=self._latest_answer,
        )
        try:
            self.attestation = await self._while_healthy(attesting)
        except KeyRefused as error:
            if await self._update_key():
                # A server that has been restarted in the meantime has made a new key.
                raise ServerLost(str(error)) from error
            raise
        self._latest_answer = self.attestation.answer
        self.is_lost, self.is_given_up, self.was_used = False, False, True
        self.last_message = "it served the policy, and no error was reported since"

    async def check_health(self) -> None:
        """Raise `ServerLost` unless it reports that it is healthy."""
        await self._client.check_health()
        self.is_up, self.healthy_at = True, time.monotonic()

    async def complete(self, request: GenerationRequest) -> Completion:
        """Return completions drawn by the attested weights only.

        Raises `ServerLost` where the server dies or is restarted, `WrongPolicy` where other weights
        drew any token.
        """
        attestation = self.attestation
        assert attestation is not None
        task = asyncio.create_task(self._client.complete(request))
        self._requests.add(task)
        try:
            await asyncio.wait({task})
        finally:
            self._requests.discard(task)
            task.cancel()
        if task.cancelled():
            raise ServerLost(self.last_message)
        completion = task.result()
        if completion.weights_ids == {attestation.weights_id}:
            return completion
        if None in completion.weights_ids:
            raise ServerLost(
                f"{self.base_url} was restarted and no longer serves the policy that was loaded"
            )
        raise WrongPolicy(
            f"{self.base_url} answered with other weights than those that were verified. Another "
            "job may be using it"
        )

    def defer(self, error: ServerUnreachable, seconds: float) -> None:
        """Send it no new request for `seconds`; requests in flight continue."""
        self.busy_until, self.last_message = time.monotonic() + seconds, str(error)

    def mark_lost(self, reason: str) -> None:
        """Do not use it until it is attested again, and cancel its requests."""
        self.attestation, self.is_lost, self.is_up = None, True, False
        self.last_message = reason
        for task in self._requests:
            task.cancel()

    async def close(self) -> None:
        await self._client.close()

    async def _while_healthy(self, attesting: Coroutine[Any, Any, Attestation]) -> Attestation:
        """Await `attesting`; raise `ServerLost` as soon as a health check fails.

        A load may take minutes, and a server that hangs in one must be noticed earlier.
        """
        task = asyncio.ensure_future(attesting)
        try:
            while not (await asyncio.wait({task}, timeout=CHECK_INTERVAL_SECONDS))[0]:
                await self.check_health()
            return task.result()
        finally:
            task.cancel()
            await asyncio.wait({task})

    async def _update_key(self) -> bool:
        """Look the key up; return whether it has changed."""
        key = find_key(self.base_url, self._config.api_key_env)
        if key == self._key:
            return False
        await self._client.close()
        self._key = key
        self._client = self._make_client()
        return True

    def _make_client(self) -> InferenceClient:
        return InferenceClient(
            self.base_url,
            key=self._key,
            timeout=self._config.timeout,
            health_timeout=self._health_timeout,
        )


def _vocabulary(directory: Path) -> int | None:
    """The number of tokens of the model in a Hugging Face directory; None if it does not say."""
    try:
        config = json.loads((directory / "config.json").read_text())
    except (OSError, ValueError):
        return None
    size = config.get("text_config", config).get("vocab_size")
    return size if isinstance(size, int) else None
