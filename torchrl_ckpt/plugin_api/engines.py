"""Engine plugins: generate tokens with the weights they were given last."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal, Protocol, runtime_checkable

from torchrl_ckpt.plugin_api.models import Model
from torchrl_ckpt.plugin_api.plugin import Plugin

if TYPE_CHECKING:
    pass


@dataclass(frozen=True)
class Sampling:
    """How to draw tokens. `temperature` 0 is greedy; `top_k` 0 and `top_p` 1 cut nothing off."""

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
"""Told of tokens as they are drawn; called on the event loop's thread, in order for each sample."""


class Engine(Plugin, Protocol):
    """Generates, token in and token out, with whatever weights it was last given."""

    dtype: str | None
    """What it computes in, such as `bfloat16`, once it has started; None where it cannot tell."""

    swaps_in_flight: ClassVar[bool]
    """Whether `load_weights` may be called while `generate` runs. The requests go on then, and
    what is drawn by the new weights is reported to `on_tokens` after `load_weights` has returned,
    what was drawn by the old ones before it."""

    def start(self, model: Model, *, max_length: int | None, threads: int) -> None:
        """Load `model`'s starting weights and be ready. Called once, before anything else."""
        ...

    async def generate(
        self, request: GenerationRequest, on_tokens: OnTokens | None = None
    ) -> list[list[Sample]]:
        """`[prompt][sample]`, in the order of the request.

        With `on_tokens`, every token is reported to it before this returns. Cancelling the call
        ends its work soon, so that a client that has gone takes nobody's place. Raises
        `ValueError` for a request that it cannot serve: too long, or no token of the model.
        """
        ...

    async def logprobs(self, sequences: Sequence[Sequence[int]]) -> list[list[float]]:
        """For each sequence, the log-probability of every token but the first, at temperature 1."""
        ...

    async def load_weights(self, directory: Path) -> None:
        """Replace the weights by those of a Hugging Face directory.

        Raises `ModelError` where they do not fit, and then nothing has changed; after any other
        error nobody knows what is loaded.
        """
        ...

    async def weights_digest(self) -> str | None:
        """A digest of the weights as they are in use, or None where the engine cannot tell.

        `KIND:HEX`, where only digests of one kind can be compared: the kind says how it is made,
        and of which dtype (the same weights in another dtype are other bytes).
        """
        ...

    def close(self) -> None: ...


@dataclass(frozen=True)
class EngineEnvironment:
    """A Python environment that an engine's library has for itself.

    Where `module` can be imported nothing more is needed. Elsewhere an environment called `name` is
    made: the distributions of the engine and the model are installed in it from where the job has
    them, the engine's with its extra `extra`, and then `unwanted` distributions that came along are
    removed.
    """

    name: str
    module: str
    extra: str
    unwanted: tuple[str, ...] = ()


@runtime_checkable
class IsolatedEngine(Protocol):
    """What an engine plugin may offer besides: its server runs in an environment of its own.

    The class is imported, and its `Config` checked, in the job's environment all the same.
    """

    @classmethod
    def environment(cls) -> EngineEnvironment:
        """What this machine needs."""
        ...


@runtime_checkable
class MortalEngine(Protocol):
    """What an engine plugin may offer besides, where it can die and leave its server alive: one
    that computes in processes of its own. The server then ends too, and may be started again."""

    def failure(self) -> str | None:
        """Why it can do nothing any more, or None while it is well. It is asked every second, also
        while calls are under way, and so must not wait."""
        ...
