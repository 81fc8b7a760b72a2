"""An engine whose every token, pause and failure a test decides."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path

from torchrl_ckpt.plugin_api.engines import DrawnTokens, GenerationRequest, OnTokens, Sample
from torchrl_ckpt.plugin_api.models import Model


class ScriptedEngine:
    """Draws the tokens of `script`, one at each `step`, for every sample of every request.

    `fault` is raised by loads, `crash` by generation after its first step. With `stepwise`, tokens
    wait for `step` and loads for `end_load`. Without `reports_tokens` it violates the contract and
    reports no token. Every token drawn has the log-probability `logprob`, every token scored
    `scored_logprob`. `events` records what was done, in order.
    """

    plugin_api = 1
    dtype = "float32"
    max_length: int | None = None

    def __init__(
        self, script: Sequence[int], *, swaps_in_flight: bool = False, reports_tokens: bool = True
    ) -> None:
        self.swaps_in_flight = swaps_in_flight
        self.reports_tokens = reports_tokens
        self.script = list(script)
        self.events: list[str] = []
        self.fault: BaseException | None = None
        self.crash: Exception | None = None
        self.stepwise = False
        self.logprob = -0.5
        self.scored_logprob = 0.0
        self._steps = asyncio.Semaphore(0)
        self._loads = asyncio.Semaphore(0)

    def step(self, num_steps: int = 1) -> None:
        """Let one request draw `num_steps` tokens."""
        for _ in range(num_steps):
            self._steps.release()

    def end_load(self) -> None:
        """Let a load return."""
        self._loads.release()

    def start(self, model: Model, *, max_length: int | None, threads: int) -> None: ...

    async def generate(
        self, request: GenerationRequest, on_tokens: OnTokens | None = None
    ) -> list[list[Sample]]:
        self.events.append("generating")
        try:
            await self._draw(request, on_tokens if self.reports_tokens else None)
        except asyncio.CancelledError:
            self.events.append("cancelled")
            raise
        self.events.append("generated")
        sample = Sample(self.script, [self.logprob] * len(self.script), "length")
        return [[sample] * request.num_samples for _ in request.prompts]

    async def logprobs(self, sequences: Sequence[Sequence[int]]) -> list[list[float]]:
        self.events.append("scoring")
        await asyncio.sleep(0)
        self.events.append("scored")
        return [[self.scored_logprob] * (len(sequence) - 1) for sequence in sequences]

    async def load_weights(self, directory: Path) -> None:
        self.events.append("loading")
        if self.stepwise:
            await self._loads.acquire()
        if self.fault is not None:
            raise self.fault
        self.events.append("loaded")

    async def weights_digest(self) -> str | None:
        return None

    def close(self) -> None: ...

    async def _draw(self, request: GenerationRequest, on_tokens: OnTokens | None) -> None:
        for token in self.script:
            if self.stepwise:
                await self._steps.acquire()
            else:
                await asyncio.sleep(0)
            for prompt in range(len(request.prompts)):
                for sample in range(request.num_samples):
                    if on_tokens is not None:
                        on_tokens(DrawnTokens(prompt, sample, [token], [self.logprob]))
            if self.crash is not None:
                raise self.crash
