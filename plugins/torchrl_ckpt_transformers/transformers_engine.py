"""Engine "transformers": generates inside the server's process, without further dependencies.

A request is one batch (or several of `max_batch` sequences, in the order of the request), and
requests run one after another. So the arithmetic of a request never depends on timing: the same
request to the same weights gives the same bits.
"""

from __future__ import annotations

import asyncio
import functools
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import CancelledError, ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field

from torchrl_ckpt.plugin_api.engine_checks import (
    check_same_model,
    check_sequences,
    hyper_parameters,
)
from torchrl_ckpt.plugin_api.engines import DrawnTokens, GenerationRequest, OnTokens, Sample
from torchrl_ckpt.plugin_api.errors import ModelError
from torchrl_ckpt.plugin_api.models import Model
from torchrl_ckpt_transformers.model import TransformersModel
from torchrl_ckpt_transformers.pretrained import load_causal_lm

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

    from torchrl_ckpt_transformers.decoding import Row

T = TypeVar("T")


class TransformersEngineConfig(BaseModel):
    """The `[engine]` table, less `type`."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    max_batch: int = Field(default=1024, ge=1)
    """The maximum number of sequences in one forward pass."""

    device: str = "auto"
    """The torch device. `auto`: the GPU if there is one."""

    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """The dtype of the arithmetic. `auto`: float32 on CPU, bfloat16 on a GPU."""


class TransformersEngine:
    """Batched decoding of a transformers model, one request at a time."""

    plugin_api = 1
    swaps_in_flight = False  # one thread both loads and decodes
    Config = TransformersEngineConfig

    dtype: str | None = None
    max_length: int | None = None

    _model: PreTrainedModel
    _attention: str

    def __init__(self, config: TransformersEngineConfig) -> None:
        self.config = config
        # With one thread, requests and loads run in the order of arrival.
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="engine")

    def start(self, model: Model, *, max_length: int | None, threads: int) -> None:
        """Raise `ModelError` for a model of another class than `TransformersModel`, and for a
        `max_length` that the model cannot take."""
        if not isinstance(model, TransformersModel):
            raise ModelError(
                f"the engine `transformers` needs a model of type `transformers`, not "
                f"{type(model).__name__}: choose another engine, or derive the model's class from "
                "TransformersModel"
            )
        self._thread.submit(self._start, model, max_length, threads).result()

    async def generate(
        self, request: GenerationRequest, on_tokens: OnTokens | None = None
    ) -> list[list[Sample]]:
        """Raise `ValueError` for prompts that the model cannot take.

        A cancelled call leaves the queue or, if it is decoding, ends after the current step.
        """
        self._check(request.prompts, request.sampling.max_tokens)
        reporter = _TokenReporter(on_tokens)
        try:
            return await self._run(lambda: self._generate(request, reporter))
        finally:
            reporter.cancel()

    async def logprobs(self, sequences: Sequence[Sequence[int]]) -> list[list[float]]:
        """Raise `ValueError` for sequences that the model cannot take."""
        self._check(sequences, 0)
        return await self._run(lambda: self._logprobs(sequences))

    async def load_weights(self, directory: Path) -> None:
        """Raise `ModelError` for weights of another model, and then nothing has changed."""
        await self._run(lambda: self._load(directory))

    async def weights_digest(self) -> str:
        """Return `digest_tensors` of the parameters in use; of tied parameters the first counts."""
        return await self._run(self._digest)

    def close(self) -> None:
        self._thread.shutdown(cancel_futures=True)

    async def _run(self, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, work)

    def _start(self, model: TransformersModel, max_length: int | None, threads: int) -> None:
        import torch

        if threads:
            torch.set_num_threads(threads)
        device, dtype = self.config.device, self.config.dtype
        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
        if dtype == "auto":
            dtype = "float32" if torch.device(device).type == "cpu" else "bfloat16"
        self.dtype = dtype
        self._model = model.causal_lm(pretrained=True).to(device, getattr(torch, dtype)).eval()
        self._attention = model.config.attention
        longest = getattr(self._model.config.get_text_config(), "max_position_embeddings", None)
        if max_length is not None and longest is not None and max_length > longest:
            raise ModelError(
                f"inference.max_length = {max_length} exceeds the {longest} tokens that the model "
                "can take"
            )
        self.max_length = max_length or longest

    def _check(self, sequences: Sequence[Sequence[int]], max_tokens: int) -> None:
        check_sequences(
            sequences,
            max_tokens=max_tokens,
            max_length=self.max_length or 2**31,
            vocabulary=self._model.get_input_embeddings().num_embeddings,
        )

    def _generate(self, request: GenerationRequest, reporter: _TokenReporter) -> list[list[Sample]]:
        from torchrl_ckpt_transformers.decoding import decode

        num_samples = request.num_samples
        rows = [(i, j) for i in range(len(request.prompts)) for j in range(num_samples)]
        samples: list[Sample] = []
        for start in range(0, len(rows), self.config.max_batch):
            batch = rows[start : start + self.config.max_batch]
            first, last = batch[0][0], batch[-1][0] + 1
            samples += decode(
                self._model,
                request.prompts[first:last],
                request.seeds[first:last],
                [(prompt - first, sample) for prompt, sample in batch],
                request.sampling,
                functools.partial(reporter.on_step, batch),
            )
        return [samples[i : i + num_samples] for i in range(0, len(samples), num_samples)]

    def _logprobs(self, sequences: Sequence[Sequence[int]]) -> list[list[float]]:
        from torchrl_ckpt_transformers.decoding import score

        results: list[list[float]] = []
        for start in range(0, len(sequences), self.config.max_batch):
            results += score(self._model, sequences[start : start + self.config.max_batch])
        return results

    def _load(self, directory: Path) -> None:
        loaded = load_causal_lm(str(directory), attention=self._attention)
        check_same_model(
            directory,
            served=hyper_parameters(self._model.config.to_dict()),
            offered=hyper_parameters(loaded.config.to_dict()),
        )
        self._model.load_state_dict(loaded.state_dict())

    def _digest(self) -> str:
        from torchrl_ckpt_transformers.digest import digest_tensors

        tied = self._model.all_tied_weights_keys
        return digest_tensors({k: v for k, v in self._model.state_dict().items() if k not in tied})


class _TokenReporter:
    """Reports the tokens that the decoding thread draws for one call, on the event loop's thread.

    Must be created on the event loop's thread.
    """

    def __init__(self, on_tokens: OnTokens | None) -> None:
        self._on_tokens = on_tokens
        self._loop = asyncio.get_running_loop()
        self._cancelled = threading.Event()

    def cancel(self) -> None:
        """Report nothing more; a decoding that still runs ends with its current step."""
        self._cancelled.set()

    def on_step(
        self,
        rows: Sequence[Row],
        indices: torch.Tensor,
        tokens: torch.Tensor,
        logprobs: torch.Tensor,
    ) -> None:
        """Report that the rows at `indices` of `rows` drew `tokens`.

        Raises `CancelledError` after `cancel`.
        """
        if self._cancelled.is_set():
            raise CancelledError
        if self._on_tokens is None:
            return
        drawn = [
            DrawnTokens(*rows[index], [token], [logprob])
            for index, token, logprob in zip(
                indices.tolist(), tokens.tolist(), logprobs.tolist(), strict=True
            )
        ]
        # The samples reach the loop in the same way at the end, so they come after their tokens.
        self._loop.call_soon_threadsafe(self._report, self._on_tokens, drawn)

    def _report(self, on_tokens: OnTokens, drawn: Sequence[DrawnTokens]) -> None:
        for tokens in drawn:
            if not self._cancelled.is_set():
                on_tokens(tokens)
