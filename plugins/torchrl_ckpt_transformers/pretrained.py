"""Reads Hugging Face directories, and explains what is wrong with one that cannot be read."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torchrl_ckpt.plugin_api.errors import ModelError

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel


def load_causal_lm(
    name: str, *, attention: str, dtype: torch.dtype | str = "float32"
) -> PreTrainedModel:
    """Load the model at `name`, a directory or hub name, on CPU, every parameter from its files.

    Raises `ModelError` if a tensor is missing, unexpected or of another shape: the library itself
    would initialize it at random and continue.
    """
    from transformers import AutoConfig, AutoModelForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()
    with explained(unusable(name, "configuration")):
        config = AutoConfig.from_pretrained(name)
    with explained(unusable(name, "weights")):
        library: Any = AutoModelForCausalLM
        model, loaded = library.from_pretrained(
            name,
            config=config,
            dtype=dtype,
            attn_implementation=attention,
            use_safetensors=True,
            output_loading_info=True,
        )
    wrong = {kind: sorted(loaded[f"{kind}_keys"]) for kind in ("missing", "unexpected")}
    if any(wrong.values()):
        raise ModelError(
            f"the weights at {name} are not those of a {type(model).__name__}: "
            + "; ".join(f"{kind} {names[:5]}" for kind, names in wrong.items() if names)
        )
    return model


@contextmanager
def explained(diagnosis: str) -> Iterator[None]:
    """Turn every exception of the library into a `ModelError` that begins with `diagnosis`."""
    try:
        yield
    except ModelError:
        raise
    except Exception as error:
        raise ModelError(f"{diagnosis}\n  {_summary(error)}") from error


def unusable(source: str, part: str) -> str:
    """Explain that the model at `source`, a directory or hub name, has no usable `part`."""
    if Path(source).is_dir():
        return (
            f"{source}: no usable {part} in this directory. It must be a Hugging Face model "
            "directory: config.json, *.safetensors and the tokenizer's files"
        )
    if Path(source).is_absolute() or source.startswith((".", "~")) or source.count("/") > 1:
        return f"{source}: no such directory. Give an existing one, or a model's name on the hub"
    return (
        f"{source}: cannot get its {part}. There is no such directory; if it is a name on the hub, "
        "check its spelling and the network, or download it and give the directory"
    )


def _summary(error: BaseException) -> str:
    """Return the start of the library's message, which can be very long."""
    return textwrap.shorten(f"{type(error).__name__}: {error}", width=400, placeholder=" ...")
