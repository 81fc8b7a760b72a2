"""Which policy is served, and the order of those who use it and those who replace it."""

from __future__ import annotations

import asyncio
import uuid
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from torchrl_ckpt.inference.cancel import Interrupted, unless
from torchrl_ckpt.inference.http_errors import EngineDied, WeightsUnknown
from torchrl_ckpt.plugin_api.engines import (
    DrawnTokens,
    Engine,
    GenerationRequest,
    MortalEngine,
    Sample,
)
from torchrl_ckpt.plugin_api.errors import ModelError
from torchrl_ckpt.serving_api.protocol import LoadedWeights, PolicySpan


@dataclass(frozen=True)
class EngineWeights:
    """The weights that the engine has, as `LoadedWeights` identifies them."""

    version: int | None = None
    weights_id: str | None = None
    directory: Path | None = None

    def span(self, num_tokens: int) -> PolicySpan:
        """`num_tokens` tokens drawn by these weights."""
        return PolicySpan(version=self.version, weights_id=self.weights_id, num_tokens=num_tokens)


OnDrawn = Callable[[DrawnTokens, EngineWeights], None]
"""Told of tokens as they are drawn, and by which weights."""


@dataclass(frozen=True)
class Stamped:
    """A sample, and the weights that drew it, span by span."""

    sample: Sample
    policy: list[PolicySpan]


class ServedPolicy:
    """An engine and what is loaded in it.

    Requests run side by side. A load waits until those that came before it are done, and those
    that come after it wait for the load; with `keep` that goes for scores alone, and generation
    goes on while the weights change. What is said to be loaded changes after a load has
    succeeded. A load that fails half-way leaves weights that nobody knows: what is being generated
    is given up, and nothing more is done until a load succeeds.
    """

    def __init__(self, engine: Engine, *, keep: bool = False) -> None:
        self.engine = engine
        self.keep = keep
        self._load = EngineWeights()
        self._weights_known = True
        self._turn = asyncio.Lock()  # taken in the order of arrival
        self._num_users = 0
        self._unused = asyncio.Event()
        self._unused.set()
        self._kept: set[asyncio.Future[None]] = set()  # done where the weights are lost

    @property
    def version(self) -> int | None:
        """The version that is served; None for weights that nobody sent, or that are unknown."""
        return self._load.version

    def check_alive(self) -> None:
        """Raises `EngineDied` where the engine says that it has."""
        if isinstance(self.engine, MortalEngine) and (failure := self.engine.failure()):
            raise EngineDied(f"the engine has died: {failure}")

    async def generate(
        self, request: GenerationRequest, on_drawn: OnDrawn | None = None
    ) -> list[list[Stamped]]:
        """`[prompt][sample]`. Raises `WeightsUnknown`, and what the engine raises."""
        if self.keep:
            return await self._generate_over_loads(request, on_drawn)
        async with self._unchanging() as load:
            samples = await self.engine.generate(
                request, None if on_drawn is None else lambda drawn: on_drawn(drawn, load)
            )
        return [
            [Stamped(sample, [load.span(len(sample.token_ids))]) for sample in group]
            for group in samples
        ]

    async def score(
        self, sequences: Sequence[Sequence[int]]
    ) -> tuple[list[list[float]], EngineWeights]:
        """The engine's log-probabilities of `sequences`, all by the same weights.

        Raises `WeightsUnknown`, and what the engine raises.
        """
        async with self._unchanging() as load:
            return await self.engine.logprobs(sequences), load

    async def load(self, directory: Path, version: int) -> LoadedWeights:
        """Serve `directory` as `version`.

        Raises `ModelError` where the directory does not fit, and then the old policy is still
        served; `EngineDied`; `WeightsUnknown` where the load failed in any other way.
        """
        async with self._turn:
            await self._unused.wait()
            try:
                await self.engine.load_weights(directory)
            except ModelError:
                raise
            except BaseException as error:
                self._lose()
                if isinstance(error, Exception):
                    self.check_alive()
                    raise WeightsUnknown(f"loading {directory} failed half-way") from error
                raise
            # No other task runs between the engine's return and this, so under `keep` the first
            # tokens of the new weights find the new load.
            self._load, self._weights_known = (
                EngineWeights(version, uuid.uuid4().hex, directory),
                True,
            )
            return await self._describe()

    async def loaded(self) -> LoadedWeights:
        """What is served; asked during a load, what is served after it."""
        async with self._turn:
            return await self._describe()

    @asynccontextmanager
    async def _unchanging(self) -> AsyncIterator[EngineWeights]:
        """What is served, which stays the same in the block."""
        async with self._turn:
            self._check_weights_known()
            self._num_users += 1
            self._unused.clear()
        try:
            yield self._load
        finally:
            self._num_users -= 1
            if self._num_users == 0:
                self._unused.set()

    async def _generate_over_loads(
        self, request: GenerationRequest, on_drawn: OnDrawn | None
    ) -> list[list[Stamped]]:
        self._check_weights_known()
        spans: defaultdict[tuple[int, int], list[PolicySpan]] = defaultdict(list)
        lost = asyncio.get_running_loop().create_future()

        def stamp(drawn: DrawnTokens) -> None:
            if lost.done():
                return
            append_span(spans[drawn.prompt, drawn.sample], self._load.span(len(drawn.token_ids)))
            if on_drawn is not None:
                on_drawn(drawn, self._load)

        self._kept.add(lost)
        try:
            samples = await unless(lost, self.engine.generate(request, stamp))
        except Interrupted:
            raise WeightsUnknown(
                "a load of weights failed half-way: load weights, then ask again"
            ) from None
        finally:
            self._kept.discard(lost)
        stamped = [
            [Stamped(sample, spans[prompt, number]) for number, sample in enumerate(group)]
            for prompt, group in enumerate(samples)
        ]
        for one in (one for group in stamped for one in group):
            if sum(span.num_tokens for span in one.policy) != len(one.sample.token_ids):
                raise RuntimeError("the engine has not told of every token that it has drawn")
        return stamped

    def _check_weights_known(self) -> None:
        self.check_alive()
        if not self._weights_known:
            raise WeightsUnknown(
                "the last load of weights failed half-way: load weights, then ask again"
            )

    def _lose(self) -> None:
        self._load, self._weights_known = EngineWeights(), False
        for lost in self._kept:
            if not lost.done():
                lost.set_result(None)

    async def _describe(self) -> LoadedWeights:
        load = self._load
        return LoadedWeights(
            version=load.version,
            weights_id=load.weights_id,
            directory=None if load.directory is None else str(load.directory),
            digest=await self.engine.weights_digest(),
            dtype=self.engine.dtype,
        )


def append_span(spans: list[PolicySpan], span: PolicySpan) -> None:
    """Add `span` to the end of `spans`, as one with the last where the weights are the same."""
    if spans and (spans[-1].version, spans[-1].weights_id) == (span.version, span.weights_id):
        span = span.model_copy(update={"num_tokens": spans.pop().num_tokens + span.num_tokens})
    spans.append(span)
