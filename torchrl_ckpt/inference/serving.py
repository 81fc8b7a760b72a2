"""Which policy is served, and the order of those who use it and those who replace it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from torchrl_ckpt.contracts import Engine
from torchrl_ckpt.errors import ModelError
from torchrl_ckpt.exchange.completions import LoadedWeights
from torchrl_ckpt.inference.failures import WeightsUnknown


class ServedPolicy:
    """An engine and the version of its weights.

    Requests run side by side; a load waits until those that came before it are done, and those
    that come after it wait for the load. The version changes after a load has succeeded. A load
    that fails half-way leaves weights that nobody knows: nothing is generated until one succeeds.
    """

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self._version: int | None = None
        self._directory: Path | None = None
        self._whole = True
        self._turn = asyncio.Lock()  # taken in the order of arrival
        self._num_users = 0
        self._unused = asyncio.Event()
        self._unused.set()

    @asynccontextmanager
    async def in_use(self) -> AsyncIterator[int | None]:
        """The version that is served, which stays the same in the block.

        It is None while the weights are those that the server started with.
        """
        async with self._turn:
            if not self._whole:
                raise WeightsUnknown("the last load of weights failed half-way: load some first")
            self._num_users += 1
            self._unused.clear()
        try:
            yield self._version
        finally:
            self._num_users -= 1
            if self._num_users == 0:
                self._unused.set()

    async def load(self, directory: Path, version: int) -> None:
        """Serve `directory` as `version`.

        Raises `ModelError` where the directory does not fit, and then the old policy is still
        served; `WeightsUnknown` where the load failed in any other way.
        """
        async with self._turn:
            await self._unused.wait()
            try:
                await self.engine.load_weights(directory)
            except ModelError:
                raise
            except BaseException as error:
                self._version, self._directory, self._whole = None, None, False
                if isinstance(error, Exception):
                    raise WeightsUnknown(f"loading {directory} failed half-way") from error
                raise
            self._version, self._directory, self._whole = version, directory, True

    async def loaded(self) -> LoadedWeights:
        """What is served; asked during a load, what is served after it."""
        async with self._turn:
            return LoadedWeights(
                version=self._version,
                directory=None if self._directory is None else str(self._directory),
                digest=await self.engine.weights_digest(),
            )
