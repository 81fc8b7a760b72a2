"""What every engine refuses in the same words: sequences that its model cannot take, and weights of
another model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torchrl_ckpt.plugin_api.errors import ModelError

_INCIDENTAL = {
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
    """Raises `ValueError` for a sequence that a model of `max_length` tokens and `vocabulary` token
    ids cannot take, or not with `max_tokens` new ones after it."""
    for sequence in sequences:
        if not sequence:
            raise ValueError("a prompt is empty; it must have at least one token")
        if len(sequence) + max_tokens > max_length:
            raise ValueError(
                f"a prompt of {len(sequence)} tokens and {max_tokens} new ones exceed the "
                f"maximum length of {max_length}"
            )
        if not (min(sequence) >= 0 and max(sequence) < vocabulary):
            raise ValueError(f"a prompt has a token id that is not in 0..{vocabulary - 1}")


def hyper_parameters(config: Mapping[str, Any]) -> dict[str, Any]:
    """Of a model's `config.json` what makes two models the same function of their tensors."""
    return {
        name: value
        for name, value in config.items()
        if name not in _INCIDENTAL and not name.endswith("_token_id")
    }


def check_same_model(
    directory: Path, *, served: Mapping[str, Any], offered: Mapping[str, Any]
) -> None:
    """Raises `ModelError` where what is known of the weights in `directory` is not what is known of
    the served ones."""
    differing = [
        f"{name} {offered.get(name)!r}, not {served.get(name)!r}"
        for name in dict.fromkeys([*served, *offered])
        if served.get(name) != offered.get(name)
    ]
    if differing:
        hidden = len(differing) - _DIFFERENCES_SHOWN
        raise ModelError(
            f"the weights at {directory} are of another model than the one that is served: "
            + ", ".join(differing[:_DIFFERENCES_SHOWN])
            + (f" and {hidden} more" if hidden > 0 else "")
        )
