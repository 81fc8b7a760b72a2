"""Engine plugins: generate tokens with the weights that were loaded last."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal, Protocol, runtime_checkable

from torchrl_ckpt.plugin_api.models import Model
from torchrl_ckpt.plugin_api.plugin import Plugin


@dataclass(frozen=True)
class Sampling:
    """How to draw tokens. `temperature` 0 is greedy; `top_k` 0 and `top_p` 1 exclude no token."""

    max_tokens: int
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    stop_token_ids: tuple[int, ...] = ()


@dataclass(frozen=True)
class GenerationRequest:
    """Prompts as token ids with one 64-bit seed each; sample j of prompt i depends on no other."""

    prompts: Sequence[Sequence[int]]
    seeds: Sequence[int]
    num_samples: int
    sampling: Sampling


@dataclass(frozen=True)
class Sample:
    """A completion: its tokens, the stop token included, and each one's natural-log probability
    under the distribution it was drawn from."""

    token_ids: Sequence[int]
    logprobs: Sequence[float]
    finish_reason: Literal["stop", "length"]


@dataclass(frozen=True)
class DrawnTokens:
    """The next tokens of sample `sample` of prompt `prompt` (both numbered from 0), as drawn."""

    prompt: int
    sample: int
    token_ids: Sequence[int]
    logprobs: Sequence[float]


OnTokens = Callable[[DrawnTokens], None]
"""Called with tokens as they are drawn, on the event loop's thread, in order for each sample."""


class Engine(Plugin, Protocol):
    """Generates tokens from tokens, with the weights that were loaded last."""

    dtype: str | None
    """The dtype it computes in, such as `bfloat16`, once started; None if unknown."""

    max_length: int | None
    """The largest number of tokens of prompt and completion together, once started; None if
    unknown."""

    swaps_in_flight: ClassVar[bool]
    """Whether `load_weights` may be called while `generate` runs. The requests then go on; tokens
    drawn by the old weights are reported to `on_tokens` before `load_weights` returns, and those
    drawn by the new weights after that."""

    def start(self, model: Model, *, max_length: int | None, threads: int) -> None:
        """Load `model`'s starting weights and get ready. Called once, before anything else."""
        ...

    async def generate(
        self, request: GenerationRequest, on_tokens: OnTokens | None = None
    ) -> list[list[Sample]]:
        """Return the samples as `[prompt][sample]`, in the order of the request.

        With `on_tokens`, every token is reported to it before this returns. Cancelling the call
        ends its work soon, so that a disconnected client frees its share of the engine. Raises
        `ValueError` for a request that is too long or has token ids that the model lacks.
        """
        ...

    async def logprobs(self, sequences: Sequence[Sequence[int]]) -> list[list[float]]:
        """Return the log-probability of every token but the first of each sequence, at
        temperature 1."""
        ...

    async def load_weights(self, directory: Path) -> None:
        """Replace the weights by those of a Hugging Face directory.

        Raises `ModelError` if they do not fit, and then nothing has changed; after any other error
        the weights are unknown.
        """
        ...

    async def weights_digest(self) -> str | None:
        """Return a digest of the weights in use, or None if the engine cannot compute one.

        Its form is `KIND:HEX`. Only digests of one kind can be compared: the kind names the method
        and the dtype (the same weights in another dtype are other bytes).
        """
        ...

    def close(self) -> None: ...


@dataclass(frozen=True)
class EngineEnvironment:
    """A Python environment for an engine's library alone.

    If `module` can be imported, nothing is made. Otherwise an environment called `name` is made:
    the distributions of the engine (with its extra `extra`) and of the model are installed in it
    from where the job has them, and then the `unwanted` distributions are removed from it.
    """

    name: str
    module: str
    extra: str
    unwanted: tuple[str, ...] = ()


@runtime_checkable
class IsolatedEngine(Protocol):
    """An optional method of an engine plugin whose server needs its own environment.

    The class is imported, and its `Config` checked, in the job's environment all the same.
    """

    @classmethod
    def environment(cls) -> EngineEnvironment:
        """Return the environment that this machine needs."""
        ...


@runtime_checkable
class FailureReportingEngine(Protocol):
    """An optional method of an engine plugin that computes in its own processes, which can die
    without the server. The server then exits too, and may be started again."""

    def failure(self) -> str | None:
        """Return why the engine has failed for good, or None if it works.

        Called every second, also during other calls, so it must not block.
        """
        ...
