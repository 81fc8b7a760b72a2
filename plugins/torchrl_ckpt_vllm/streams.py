"""The outputs of vLLM's requests on their way to those who asked, and when none is on its way."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from vllm import RequestOutput, SamplingParams
from vllm.v1.engine.async_llm import AsyncLLM
from vllm.v1.engine.output_processor import RequestOutputCollector


class Streams:
    """Runs requests on `llm`, whose outputs come through here alone.

    An output goes from vLLM's process into a queue, from there by a task of `AsyncLLM` into the
    request's collector, and from there to the request's own task. Its queue is looked at, and the
    method that empties it is watched, because vLLM itself cannot tell whether all was delivered.
    """

    def __init__(self, llm: AsyncLLM) -> None:
        self._llm = llm
        self._core: Any = llm.engine_core
        self._collectors: set[RequestOutputCollector] = set()
        self._receive = self._core.get_output_async
        self._core.get_output_async = self._get_output
        self._all_sorted = True

    async def run(
        self,
        request_id: str,
        prompt: list[int],
        params: SamplingParams,
        report: Callable[[RequestOutput], None],
    ) -> RequestOutput:
        """Tell `report` of every output, and return the last. Cancelled, or where `report` raises,
        the request is aborted in vLLM."""
        inputs: Any = {"type": "token", "prompt_token_ids": prompt}
        collector = await self._llm.add_request(request_id, inputs, params)
        self._collectors.add(collector)
        finished = False
        try:
            while True:
                output = collector.get_nowait() or await collector.get()
                assert isinstance(output, RequestOutput)
                finished = output.finished
                # Nothing is awaited in between: what has left the collector has been reported.
                report(output)
                if finished:
                    return output
        finally:
            self._collectors.discard(collector)
            if not finished:
                await self._llm.abort(collector.request_id, internal=True)
            collector.close()

    async def drained(self) -> None:
        """Return once everything that vLLM's process has sent so far has been reported."""
        while self._on_the_way():
            if self._llm.errored:
                raise self._llm.dead_error
            await asyncio.sleep(0)

    def _on_the_way(self) -> bool:
        return (
            not self._core.outputs_queue.empty()
            or not self._all_sorted
            or any(collector.output is not None for collector in self._collectors)
        )

    async def _get_output(self) -> Any:
        """In place of the engine core's method: who asks for more has handed out what it had."""
        self._all_sorted = True
        outputs = await self._receive()
        self._all_sorted = False
        return outputs
