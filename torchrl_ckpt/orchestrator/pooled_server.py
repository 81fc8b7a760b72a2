"""One inference server as the orchestrator sees it: there or not, attested or not, how busy."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Coroutine
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torchrl_ckpt.config.orchestrator import ClientConfig
from torchrl_ckpt.orchestrator.attestation import Answered, Attested, attest
from torchrl_ckpt.plugin_api.engines import GenerationRequest, Sample
from torchrl_ckpt.plugin_api.errors import ServerUnreachable, WrongPolicy
from torchrl_ckpt.run.weight_store import Policy
from torchrl_ckpt.serving_api.client import InferenceClient, KeyRefused, ServerLost
from torchrl_ckpt.serving_api.keys import find_key
from torchrl_ckpt.serving_api.protocol import Completion

_CHECK_SECONDS = 1.0


@dataclass(frozen=True)
class Completed:
    """Samples `[prompt][sample]`, every token of which is of the attested load `load`."""

    samples: list[list[Sample]]
    load: str


class PooledServer:
    """The server at `base_url`.

    `attested` is the load of the current policy, None while the server is not to be used.
    `is_lost` says that it was tried in vain and not attested since, `is_up` that it has said since
    then that it is well, `is_given_up` that it was waited for in vain although it was up, and
    `said` what came of the latest trouble. Of `time.monotonic` are `well_at`, when it last said
    that it is well, and `busy_until`, before which it is not to be asked. `num_strange_loads`
    counts the times that it answered with weights of somebody else's under the current policy.
    """

    def __init__(self, base_url: str, config: ClientConfig) -> None:
        self.base_url = base_url
        self.attested: Attested | None = None
        self.is_lost = False
        self.is_up = False
        self.is_given_up = False
        self.was_used = False
        self.said = "nothing yet"
        self.well_at = 0.0
        self.busy_until = 0.0
        self.num_strange_loads = 0
        self._config = config
        self._key: str | None = None
        self._client = InferenceClient(base_url, key=None, timeout=config.timeout)
        self._work: set[asyncio.Task[Completion]] = set()
        self._latest: Answered | None = None

    @property
    def num_in_flight(self) -> int:
        return len(self._work)

    async def attest(self, policy: Policy, directory: Path, previous: Policy | None) -> None:
        """Have it serve `policy` and make sure that it does. Raises as `attest` does."""
        await self.check()
        await self._find_key()
        work = attest(
            self._client,
            policy,
            directory,
            tolerance=self._config.canary_tolerance,
            previous=previous,
            own=self._latest,
        )
        try:
            attested = await self._while_well(work)
        except KeyRefused as error:
            if await self._find_key():
                # A server that has started in the meantime has made a new one.
                raise ServerLost(str(error)) from error
            raise
        self.attested, self.is_lost, self.was_used = attested, False, True
        self.is_given_up, self._latest = False, attested.answered
        self.said = "it served the policy, and has not been heard of since"

    async def check(self) -> None:
        """Raises `ServerLost` if it is no longer well."""
        await self._client.check_health()
        self.is_up, self.well_at = True, time.monotonic()

    async def generate(self, request: GenerationRequest) -> Completed:
        """Completions by the attested load.

        Raises `ServerLost` where it dies before or was restarted, `WrongPolicy` where other weights
        had a part in them.
        """
        attested = self.attested
        assert attested is not None
        work = asyncio.create_task(self._client.complete(request))
        self._work.add(work)
        try:
            await asyncio.wait({work})
        finally:
            self._work.discard(work)
            work.cancel()
        if work.cancelled():
            raise ServerLost(self.said)
        completion = work.result()
        if completion.weights_ids == {attested.load}:
            samples = [
                Sample(choice.token_ids or [], choice.token_logprobs, choice.finish_reason)
                for choice in completion.choices
            ]
            size = request.num_samples
            groups = [samples[i : i + size] for i in range(0, len(samples), size)]
            return Completed(groups, attested.load)
        if None in completion.weights_ids:
            raise ServerLost(f"{self.base_url} was restarted: it forgot the policy it was sent")
        raise WrongPolicy(
            f"{self.base_url} answered with other weights than those that were checked; is another "
            "job using it?"
        )

    def defer(self, error: ServerUnreachable, seconds: float) -> None:
        """Ask nothing of it for so long; what it has been asked goes on."""
        self.busy_until, self.said = time.monotonic() + seconds, str(error)

    def lose(self, said: str) -> None:
        """Use it no more until it is attested again, and end what it was asked for."""
        self.attested, self.is_lost, self.is_up, self.said = None, True, False, said
        for work in self._work:
            work.cancel()

    async def close(self) -> None:
        await self._client.close()

    async def _while_well(self, work: Coroutine[Any, Any, Attested]) -> Attested:
        """`work`'s result; raises `ServerLost` as soon as the server does not say that it is well.

        A load may take minutes, and a server that hangs in one is not to be given as many.
        """
        task = asyncio.ensure_future(work)
        try:
            while not (await asyncio.wait({task}, timeout=_CHECK_SECONDS))[0]:
                await self.check()
            return task.result()
        finally:
            task.cancel()
            await asyncio.wait({task})

    async def _find_key(self) -> bool:
        """Whether the key is another one than before."""
        key = find_key(self.base_url, self._config.api_key_env)
        if key == self._key:
            return False
        await self._client.close()
        self._key = key
        self._client = InferenceClient(self.base_url, key=key, timeout=self._config.timeout)
        return True
