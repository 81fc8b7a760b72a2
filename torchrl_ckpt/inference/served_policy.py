"""The policy that is served, and the order of requests and of loads that replace its weights."""

from __future__ import annotations

import asyncio
import uuid
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from torchrl_ckpt.inference.cancel import Interrupted, cancel_when
from torchrl_ckpt.inference.http_errors import EngineDied, WeightsUnknown
from torchrl_ckpt.plugin_api import heartbeat
from torchrl_ckpt.plugin_api.engines import (
    DrawnTokens,
    Engine,
    FailureReportingEngine,
    GenerationRequest,
    Sample,
)
from torchrl_ckpt.plugin_api.errors import ModelError
from torchrl_ckpt.serving_api.protocol import LoadedWeights, PolicySpan


@dataclass(frozen=True)
class EngineWeights:
    """Which weights the engine has. All fields are None for those that the server started with, and
    while the weights are unknown."""

    version: int | None = None
    weights_id: str | None = None
    directory: Path | None = None

    def span(self, num_tokens: int) -> PolicySpan:
        """`num_tokens` tokens drawn by these weights."""
        return PolicySpan(version=self.version, weights_id=self.weights_id, num_tokens=num_tokens)


OnDrawn = Callable[[DrawnTokens, EngineWeights], None]
"""Called with tokens as they are drawn, and with the weights that drew them."""


class ServedPolicy:
    """An engine and the weights that are loaded in it.

    Requests run side by side. A load waits for the requests that came before it, and requests that
    come after it wait for the load. With `update_in_flight` that holds for scores only: generation
    goes on while the weights change. The weights that are reported change once a load has
    succeeded. A load that fails half-way leaves unknown weights: running generation is cancelled,
    and every request is refused until a load succeeds.
    """

    def __init__(self, engine: Engine, *, update_in_flight: bool = False) -> None:
        self.engine = engine
        self.update_in_flight = update_in_flight
        self._weights = EngineWeights()
        self._weights_known = True
        self._turn = asyncio.Lock()  # taken in the order of arrival
        self._num_users = 0
        self._unused = asyncio.Event()
        self._unused.set()
        # One for each generation that may outlast a load; set once the weights are unknown.
        self._weights_lost: set[asyncio.Future[None]] = set()

    @property
    def version(self) -> int | None:
        """The version that is served; None if no load has succeeded, or the weights are unknown."""
        return self._weights.version

    def check_alive(self) -> None:
        """Raise `EngineDied` if the engine reports a failure."""
        if isinstance(self.engine, FailureReportingEngine) and (failure := self.engine.failure()):
            raise EngineDied(f"the engine has died: {failure}")

    async def generate(
        self, request: GenerationRequest, on_drawn: OnDrawn | None = None
    ) -> list[tuple[Sample, list[PolicySpan]]]:
        """Generate the samples of `request`, by prompt and then by sample, with their policy spans.

        Raises `EngineDied`, `WeightsUnknown`, and what the engine raises.
        """
        if self.update_in_flight:
            return await self._generate_across_loads(request, on_drawn)
        async with self._fixed_weights() as weights:
            with heartbeat.working():
                groups = await self.engine.generate(
                    request, None if on_drawn is None else lambda drawn: on_drawn(drawn, weights)
                )
        return [
            (sample, [weights.span(len(sample.token_ids))]) for group in groups for sample in group
        ]

    async def score(
        self, sequences: Sequence[Sequence[int]]
    ) -> tuple[list[list[float]], EngineWeights]:
        """Return the engine's log-probabilities of `sequences`, all computed by the same weights.

        Raises `EngineDied`, `WeightsUnknown`, and what the engine raises.
        """
        async with self._fixed_weights() as weights:
            with heartbeat.working():
                return await self.engine.logprobs(sequences), weights

    async def load(self, directory: Path, version: int) -> LoadedWeights:
        """Serve the weights in `directory` as `version`.

        Raises `ModelError` if the directory does not fit, and then the earlier weights are still
        served; `EngineDied`; `WeightsUnknown` if the load failed in any other way.
        """
        async with self._turn:
            await self._unused.wait()
            try:
                with heartbeat.working():
                    await self.engine.load_weights(directory)
            except ModelError:
                raise
            except BaseException as error:
                self._lose_weights()
                if isinstance(error, Exception):
                    self.check_alive()
                    raise WeightsUnknown(f"the load of {directory} failed half-way") from error
                raise
            # No other task runs between the engine's return and this line, so with
            # `update_in_flight` the first tokens of the new weights are recorded as theirs.
            self._weights = EngineWeights(version, uuid.uuid4().hex, directory)
            self._weights_known = True
            return await self._describe()

    async def loaded(self) -> LoadedWeights:
        """Return the weights in use; during a load, those in use after it."""
        async with self._turn:
            return await self._describe()

    @asynccontextmanager
    async def _fixed_weights(self) -> AsyncIterator[EngineWeights]:
        """Yield the weights in use, which stay the same in the block."""
        async with self._turn:
            self._check_weights_known()
            self._num_users += 1
            self._unused.clear()
        try:
            yield self._weights
        finally:
            self._num_users -= 1
            if self._num_users == 0:
                self._unused.set()

    async def _generate_across_loads(
        self, request: GenerationRequest, on_drawn: OnDrawn | None
    ) -> list[tuple[Sample, list[PolicySpan]]]:
        self._check_weights_known()
        spans: defaultdict[tuple[int, int], list[PolicySpan]] = defaultdict(list)
        weights_lost = asyncio.get_running_loop().create_future()

        def record(drawn: DrawnTokens) -> None:
            if weights_lost.done():
                return
            append_span(spans[drawn.prompt, drawn.sample], self._weights.span(len(drawn.token_ids)))
            if on_drawn is not None:
                on_drawn(drawn, self._weights)

        self._weights_lost.add(weights_lost)
        try:
            with heartbeat.working():
                groups = await cancel_when(weights_lost, self.engine.generate(request, record))
        except Interrupted:
            raise WeightsUnknown(
                "a load of weights failed half-way: load weights, then repeat the request"
            ) from None
        finally:
            self._weights_lost.discard(weights_lost)
        samples = [
            (sample, spans[prompt, number])
            for prompt, group in enumerate(groups)
            for number, sample in enumerate(group)
        ]
        for sample, policy in samples:
            if sum(span.num_tokens for span in policy) != len(sample.token_ids):
                raise RuntimeError("the engine did not report every token that it drew")
        return samples

    def _check_weights_known(self) -> None:
        self.check_alive()
        if not self._weights_known:
            raise WeightsUnknown(
                "the last load of weights failed half-way: load weights, then repeat the request"
            )

    def _lose_weights(self) -> None:
        self._weights, self._weights_known = EngineWeights(), False
        for weights_lost in self._weights_lost:
            if not weights_lost.done():
                weights_lost.set_result(None)

    async def _describe(self) -> LoadedWeights:
        weights = self._weights
        return LoadedWeights(
            version=weights.version,
            weights_id=weights.weights_id,
            directory=None if weights.directory is None else str(weights.directory),
            digest=await self.engine.weights_digest(),
            dtype=self.engine.dtype,
        )


def append_span(spans: list[PolicySpan], span: PolicySpan) -> None:
    """Append `span` to `spans`, merged with the last one if both are of the same weights."""
    if spans and (spans[-1].version, spans[-1].weights_id) == (span.version, span.weights_id):
        span = span.model_copy(update={"num_tokens": spans.pop().num_tokens + span.num_tokens})
    spans.append(span)
