"""How many tokens a sequence may have, and which option says so."""

from __future__ import annotations

from dataclasses import dataclass

from torchrl_ckpt.config.inference import InferenceConfig
from torchrl_ckpt.config.trainer import PackingConfig
from torchrl_ckpt.plugin_api.models import BoundedModel, Model


@dataclass(frozen=True, order=True)
class LengthLimit:
    """A sequence has at most `tokens` tokens. `source` is what says so, as in a message."""

    tokens: int
    source: str

    def __str__(self) -> str:
        return f"{self.tokens:,} tokens ({self.source})"


def row_limit(packing: PackingConfig, section: str = "") -> LengthLimit:
    """The limit of what is trained on; `section` is where a recipe has `packing`."""
    return LengthLimit(packing.length, f"`{section}packing.length`")


def server_limit(config: InferenceConfig) -> LengthLimit | None:
    """The limit that the server's recipe sets, if it does."""
    if config.max_length is None:
        return None
    return LengthLimit(config.max_length, "`inference.max_length`")


def model_limit(model: Model) -> LengthLimit | None:
    """The limit of the model itself, where its plugin knows one."""
    tokens = model.max_length() if isinstance(model, BoundedModel) else None
    return None if tokens is None else LengthLimit(tokens, "what the model can take")


def smallest(*limits: LengthLimit | None) -> LengthLimit | None:
    """The smallest of the limits that there are."""
    return min((limit for limit in limits if limit is not None), default=None)
