"""What a plugin must be: one small Protocol a kind, and the plain data that crosses it.

A plugin is a class that an entry point names. It states `plugin_api = 1`, may carry a `Config`
(a pydantic model or a dataclass; the plugin's table in the recipe, less `type`, is checked against
it), and is built as `Plugin(config)`, or `Plugin()` where it has no `Config`. Nothing heavy is
imported here, so that a plugin can be listed and checked without torch.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Protocol, runtime_checkable

if TYPE_CHECKING:
    import torch
    from torch.distributed import ProcessGroup
    from torch.distributed.device_mesh import DeviceMesh

PLUGIN_API = 1

Kind = Literal["models", "losses", "checkpoint_backends", "environments", "engines"]
KINDS: tuple[Kind, ...] = ("models", "losses", "checkpoint_backends", "environments", "engines")


@dataclass(frozen=True)
class MaybePath:
    """Marks a string in a `Config`: a path where such a directory exists, else a hub name."""


PathOrName = Annotated[str, MaybePath()]

Message = Mapping[str, Any]
"""One chat message: `{"role": ..., "content": ...}`."""

Json = Any
"""What `json.dumps` takes: the only form in which state that is not a tensor is kept."""


class Plugin(Protocol):
    """What every plugin class carries, whatever its kind."""

    plugin_api: ClassVar[int]


# ---------------------------------------------------------------------------------------- models


class Tokenizer(Protocol):
    """The part of a Hugging Face tokenizer that is used."""

    eos_token_id: int
    pad_token_id: int | None

    def encode(self, text: str, *, add_special_tokens: bool = ...) -> list[int]: ...

    def decode(self, token_ids: Sequence[int], *, skip_special_tokens: bool = ...) -> str: ...

    def apply_chat_template(self, conversation: Sequence[Message], **kwargs: Any) -> Any: ...


class Model(Plugin, Protocol):
    """Builds a causal language model, shards it, and speaks Hugging Face's directory format."""

    def tokenizer(self) -> Tokenizer:
        """Raises `ModelError` where the directory holds none."""
        ...

    def build(self, *, pretrained: bool) -> torch.nn.Module:
        """The model on CPU in float32.

        `pretrained` false leaves the weights random (drawn from torch's global generator), for a
        caller that loads a checkpoint over them. The module is called with `input_ids` and
        `position_ids`, both `[rows, length]`, where positions start again at 0 with every
        document, and must keep documents of one row apart. It returns logits
        `[rows, length, vocabulary]`.
        """
        ...

    def parallelize(
        self, model: torch.nn.Module, mesh: DeviceMesh, *, param_dtype: torch.dtype
    ) -> None:
        """Shard `model` over the one-dimensional `mesh` in place (FSDP2), reducing in float32."""
        ...

    def export(self, state: Mapping[str, torch.Tensor], directory: Path) -> None:
        """Write full tensors as a Hugging Face directory: configuration, safetensors, tokenizer."""
        ...


@runtime_checkable
class DigestingModel(Protocol):
    """What a model plugin may offer besides: it tells the weights of an engine by their digest."""

    def digest(self, state: Mapping[str, torch.Tensor]) -> str:
        """What `Engine.weights_digest` gives once an engine has loaded the export of `state`."""
        ...


# ---------------------------------------------------------------------------------------- losses


@dataclass(frozen=True)
class LossInputs:
    """One micro-batch, shifted so that position t of every tensor speaks of the same target token.

    Shapes: `logits` `[rows, length, vocabulary]` (already divided by the sampling temperature);
    all others `[rows, length]`. `mask` is true where a target counts. `documents` numbers the
    samples within each row from 0, with -1 for padding. `advantages` and `old_logprobs` (natural
    log, as the policy that generated the tokens gave them) are there only for a loss that requires
    them. `num_tokens` and `num_samples` count the whole global batch, over all micro-batches and
    ranks.
    """

    logits: torch.Tensor
    targets: torch.Tensor
    mask: torch.Tensor
    documents: torch.Tensor
    num_tokens: int
    num_samples: int
    advantages: torch.Tensor | None = None
    old_logprobs: torch.Tensor | None = None


@dataclass(frozen=True)
class LossOutput:
    """`loss` and `metrics` of micro-batches and ranks are *added up* to those of the batch."""

    loss: torch.Tensor
    metrics: Mapping[str, torch.Tensor] = field(default_factory=dict)


class Loss(Plugin, Protocol):
    """Logits and targets in, a scalar and metrics out."""

    requires: ClassVar[frozenset[str]]
    """Which of `advantages` and `old_logprobs` it needs."""

    def __call__(self, inputs: LossInputs) -> LossOutput: ...


# --------------------------------------------------------------------------- checkpoint backends


@dataclass(frozen=True)
class FileRecord:
    """A file of a checkpoint, as it was written.

    `path` is relative with `/`; `digest` is the xxh3-128 of its bytes in hexadecimal, taken while
    writing, so that whatever happens to the bytes afterwards shows.
    """

    path: str
    size: int
    digest: str


@dataclass(frozen=True)
class Written:
    """What one rank wrote, now that it is durable.

    `metrics` is what the backend has measured of it, such as `write_seconds`, `hash_seconds` and
    `staged_bytes`.
    """

    files: Sequence[FileRecord]
    metrics: Mapping[str, float] = field(default_factory=dict)


Advance = Callable[[int], object]
"""Told of bytes as they are gone through, for who watches."""


class Save(Protocol):
    """A save under way."""

    def wait_staged(self) -> None:
        """Return once the state may change again. Raises nothing: `wait_written` does."""
        ...

    def wait_written(self, advance: Advance = lambda _: None) -> Written:
        """Return once every byte that this rank wrote is durable. Collective, as `save` is.

        Raises whatever the writer raised; every tensor of the state is in one of the files of one
        of the ranks. `advance` hears of bytes as they are written.
        """
        ...


class CheckpointBackend(Plugin, Protocol):
    """Puts tensors into files and back. When to save and what to keep is not its affair."""

    file_format: ClassVar[str]
    """The name of what it writes. Backends of one format read each other's files."""

    in_background: ClassVar[bool]
    """Whether training goes on while it writes. `wait_written` is then called on a thread of its
    own, and `save` only after the `wait_written` of the save before has returned."""

    def prepare(self, state: Mapping[str, torch.Tensor], group: ProcessGroup) -> None:
        """Make ready what saves will need, before the first of them and before the first step.

        `state` has the names, shapes and placement of what will be saved; its values do not
        matter. Collective. Where it is not called, the first save does it, and takes longer.
        """
        ...

    def save(self, state: Mapping[str, torch.Tensor], directory: Path, group: ProcessGroup) -> Save:
        """Begin to write `state` (tensors and DTensors under unique names) below `directory`.

        Collective over `group`, which is the checkpoint's own (gloo) and used by nobody else; it
        raises on every rank or on none.
        """
        ...

    def load(self, state: Mapping[str, torch.Tensor], directory: Path, group: ProcessGroup) -> None:
        """Fill the tensors of `state` in place, resharding where the layout differs.

        Raises `CheckpointMismatch` for a name or shape that the files lack, and executes nothing
        that it reads.
        """
        ...

    def close(self) -> None:
        """Drain what is under way and give back processes and buffers."""
        ...


@dataclass(frozen=True)
class TensorDescription:
    """A tensor of a checkpoint, whole, however it is sharded. `dtype` is such as `float32`."""

    name: str
    shape: tuple[int, ...]
    dtype: str


@runtime_checkable
class ReadableBackend(Protocol):
    """What a checkpoint backend may offer besides: a look into its files without a model.

    `torchrl-ckpt ckpt inspect`, `diff` and `export` need it. Both methods work in one process, join
    no group and execute nothing that they read; they raise `CheckpointDamaged` for files that are
    not what `save` wrote.
    """

    def describe(self, directory: Path) -> list[TensorDescription]:
        """What `save` has put below `directory`, by name."""
        ...

    def read(self, directory: Path, names: Collection[str]) -> dict[str, torch.Tensor]:
        """Those tensors, whole and on CPU."""
        ...


# ---------------------------------------------------------------------------------- environments


@dataclass(frozen=True)
class Problem:
    """A task for the model. `prompt` is text as it stands or chat messages.

    `answer` is what a perfect model would say (without the end token): supervised fine-tuning on
    an environment learns it. `info` is the environment's own, plain JSON.
    """

    id: str
    prompt: str | Sequence[Message]
    answer: str
    info: Mapping[str, Json] = field(default_factory=dict)


@dataclass(frozen=True)
class Score:
    """`reward` is what training raises; `metrics` are only shown."""

    reward: float
    metrics: Mapping[str, float] = field(default_factory=dict)


Split = Literal["train", "eval"]


class Environment(Plugin, Protocol):
    """Problems by number, and the score of a completion.

    A problem is a pure function of its number. The stream's order, its epochs and its place in a
    checkpoint are the core's affair, so no environment can skip or repeat a problem on resume.
    """

    def size(self, split: Split) -> int | None:
        """How many problems there are; None for as many as one asks for."""
        ...

    def problem(self, split: Split, index: int) -> Problem: ...

    def score(self, problem: Problem, completion: str) -> Score:
        """A pure function: of the same completion always the same score."""
        ...


# --------------------------------------------------------------------------------------- engines


@dataclass(frozen=True)
class Sampling:
    """How to draw tokens. `temperature` 0 is greedy; `top_k` 0 and `top_p` 1 cut nothing off."""

    max_tokens: int
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    stop_token_ids: tuple[int, ...] = ()


@dataclass(frozen=True)
class Generation:
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
        self, request: Generation, on_tokens: OnTokens | None = None
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
