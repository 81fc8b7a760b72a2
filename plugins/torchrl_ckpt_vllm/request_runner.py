"""Runs vLLM's requests, and knows when all of their outputs have been reported."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from vllm import RequestOutput, SamplingParams
from vllm.v1.engine.async_llm import AsyncLLM
from vllm.v1.engine.output_processor import RequestOutputCollector

from torchrl_ckpt.plugin_api import heartbeat


class RequestRunner:
    """Runs all requests of `llm`, so that every output passes through here.

    vLLM's process puts an output into a queue; a task of `AsyncLLM` moves it from there into the
    request's collector, and the request's own task takes it from there. vLLM cannot tell whether
    all outputs have been delivered, so this class inspects the queue and wraps the method that
    empties it.
    """

    def __init__(self, llm: AsyncLLM) -> None:
        self._llm = llm
        self._core: Any = llm.engine_core
        self._collectors: set[RequestOutputCollector] = set()
        self._receive = self._core.get_output_async
        self._core.get_output_async = self._get_output
        self._all_collected = True

    async def run(
        self,
        request_id: str,
        prompt: list[int],
        params: SamplingParams,
        on_output: Callable[[RequestOutput], None],
    ) -> RequestOutput:
        """Call `on_output` with every output, and return the last one.

        If this is cancelled, or `on_output` raises, the request is aborted in vLLM.
        """
        inputs: Any = {"type": "token", "prompt_token_ids": prompt}
        collector = await self._llm.add_request(request_id, inputs, params)
        self._collectors.add(collector)
        finished = False
        try:
            while True:
                output = collector.get_nowait() or await collector.get()
                assert isinstance(output, RequestOutput)
                finished = output.finished
                # No await in between: an output that has left the collector has been reported.
                on_output(output)
                if finished:
                    return output
        finally:
            self._collectors.discard(collector)
            if not finished:
                await self._llm.abort(collector.request_id, internal=True)
            collector.close()

    async def wait_until_drained(self) -> None:
        """Return once every output that vLLM's process has sent so far has been reported."""
        while self._has_pending_outputs():
            if self._llm.errored:
                raise self._llm.dead_error
            await asyncio.sleep(0)

    def _has_pending_outputs(self) -> bool:
        return (
            not self._core.outputs_queue.empty()
            or not self._all_collected
            or any(collector.output is not None for collector in self._collectors)
        )

    async def _get_output(self) -> Any:
        """Replace the engine core's method: a caller that asks again has collected its outputs."""
        self._all_collected = True
        outputs = await self._receive()
        heartbeat.beat()
        self._all_collected = False
        return outputs
