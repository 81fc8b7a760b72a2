"""Checks that engines share: sequences that the model cannot take, and weights of another model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torchrl_ckpt.plugin_api.errors import ModelError

_IRRELEVANT = {
    "_name_or_path",
    "architectures",
    "dtype",
    "torch_dtype",
    "transformers_version",
    "use_cache",
}
_DIFFERENCES_SHOWN = 5


def check_sequences(
    sequences: Sequence[Sequence[int]], *, max_tokens: int, max_length: int, vocabulary: int
) -> None:
    """Raise `ValueError` for an empty sequence, one that exceeds `max_length` together with
    `max_tokens` new tokens, or one with a token id outside of the `vocabulary` (a size)."""
    for sequence in sequences:
        if not sequence:
            raise ValueError("a prompt is empty; it must have at least one token")
        if len(sequence) + max_tokens > max_length:
            raise ValueError(
                f"a prompt of {len(sequence)} tokens and {max_tokens} new tokens exceed the "
                f"maximum length of {max_length}"
            )
        if not (min(sequence) >= 0 and max(sequence) < vocabulary):
            raise ValueError(f"a prompt has a token id that is not in 0..{vocabulary - 1}")


def hyper_parameters(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the part of a model's `config.json` that decides what it computes from its tensors."""
    return {
        name: value
        for name, value in config.items()
        if name not in _IRRELEVANT and not name.endswith("_token_id")
    }


def check_same_model(
    directory: Path, *, served: Mapping[str, Any], offered: Mapping[str, Any]
) -> None:
    """Raise `ModelError` if the properties of the weights in `directory`, `offered`, are not those
    of the `served` model."""
    differing = [
        f"{name} {offered.get(name)!r}, not {served.get(name)!r}"
        for name in dict.fromkeys([*served, *offered])
        if served.get(name) != offered.get(name)
    ]
    if differing:
        hidden = len(differing) - _DIFFERENCES_SHOWN
        raise ModelError(
            f"the weights at {directory} are of another model than the served one: "
            + ", ".join(differing[:_DIFFERENCES_SHOWN])
            + (f" and {hidden} more" if hidden > 0 else "")
        )
