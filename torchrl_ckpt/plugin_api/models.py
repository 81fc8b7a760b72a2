"""Model plugins: build a causal language model, shard it, export it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from torchrl_ckpt.plugin_api.plugin import Message, Plugin

if TYPE_CHECKING:
    import torch
    from torch.distributed.device_mesh import DeviceMesh


class Model(Plugin, Protocol):
    """Builds a causal language model, shards it, and exports it in Hugging Face's format."""

    def tokenizer(self) -> Tokenizer:
        """Load the model's tokenizer. Raises `ModelError` where the directory holds none."""
        ...

    def build(self, *, pretrained: bool) -> torch.nn.Module:
        """Build the model on CPU in float32.

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


class Tokenizer(Protocol):
    """The part of a Hugging Face tokenizer that is used."""

    eos_token_id: int
    pad_token_id: int | None

    def encode(self, text: str, *, add_special_tokens: bool = ...) -> list[int]: ...

    def decode(self, token_ids: Sequence[int], *, skip_special_tokens: bool = ...) -> str: ...

    def apply_chat_template(self, conversation: Sequence[Message], **kwargs: Any) -> Any: ...


@runtime_checkable
class DigestingModel(Protocol):
    """Optional part of a model plugin: computes the digest by which an engine's weights are
    recognised."""

    def digest(self, state: Mapping[str, torch.Tensor]) -> str:
        """Return what `Engine.weights_digest` returns after the export of `state` was loaded."""
        ...


@runtime_checkable
class BoundedModel(Protocol):
    """Optional part of a model plugin: knows how long a sequence the model can take."""

    def max_length(self) -> int | None:
        """Return the largest number of tokens; None if there is no limit. Loads no weights."""
        ...
