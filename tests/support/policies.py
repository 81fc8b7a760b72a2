"""Published policies, and pools that serve them."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import torch

from tests.support.rollouts import ATTEMPT_ID
from tests.support.tiny_model import logprobs_of, tiny_model
from torchrl_ckpt.config.orchestrator import ClientConfig
from torchrl_ckpt.orchestrator.server_pool import ServerPool
from torchrl_ckpt.plugin_api.engines import GenerationRequest
from torchrl_ckpt.run.progress import ProgressLog, ProgressMessage, ProgressTail
from torchrl_ckpt.run.weight_store import Canary, Policy, WeightStore
from torchrl_ckpt.serving_api.protocol import Choice

_SEQUENCES = [[5, 6, 7, 3, 7, 6, 5, 1], [9, 3, 9, 1, 4, 4, 8, 2]]


def publish_random_policy(run: Path, version: int) -> Policy:
    """Publish random weights as policy `version` of `ATTEMPT_ID`, as a trainer would."""
    plugin = tiny_model()
    torch.manual_seed(version + 100)
    module = plugin.build(pretrained=False).eval()
    state = module.state_dict()
    logprobs = [logprobs_of(module, sequence) for sequence in _SEQUENCES]
    canary = Canary(_SEQUENCES, logprobs, "float32")
    policy = Policy(version, ATTEMPT_ID, False, canary, plugin.digest(state))
    WeightStore(run / "weights").write(
        version, lambda directory: plugin.export(state, directory), policy
    )
    return policy


class PolicyPool:
    """A `ServerPool` for the policies that `ATTEMPT_ID` has published in `run`."""

    def __init__(self, pool: ServerPool, run: Path, progress: Path) -> None:
        self.pool = pool
        self._weights = WeightStore(run / "weights")
        self._progress = progress

    async def serve(self, version: int = 0) -> None:
        policy = self._weights.read(version, attempt_id=ATTEMPT_ID)
        assert policy is not None
        await self.pool.serve(policy, self._weights.path(version))

    async def complete(self, requests: Sequence[GenerationRequest]) -> list[list[Choice]]:
        """Return the choices for each request, without what differs between servers."""
        completions = await self.pool.complete(requests, lambda request: None)
        return [
            [choice.model_copy(update={"policy": []}) for choice in completion.choices]
            for completion in completions
        ]

    def num_attested(self) -> int:
        return sum(server.attestation is not None for server in self.pool.servers)

    def messages(self) -> list[str]:
        """The messages to the user so far."""
        events = ProgressTail(self._progress).read()
        return [event.message for event in events if isinstance(event, ProgressMessage)]


@contextlib.asynccontextmanager
async def policy_pool(
    base_urls: Sequence[str],
    run: Path,
    progress: Path,
    *,
    timeout: float = 300,
    health_timeout: float | None = None,
) -> AsyncIterator[PolicyPool]:
    """Open a pool of the servers at `base_urls`; `progress` is its progress log."""
    config = ClientConfig(base_urls=list(base_urls), timeout=timeout)
    pool = ServerPool(config, ProgressLog(progress, "orchestrator"), health_timeout=health_timeout)
    async with contextlib.aclosing(pool):
        yield PolicyPool(pool, run, progress)
