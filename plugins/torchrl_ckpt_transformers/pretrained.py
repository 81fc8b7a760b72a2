"""Reads Hugging Face directories, and says plainly what is wrong with one."""

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
    """The model at `name`, a directory or hub name, on CPU, with every parameter from its files.

    Raises `ModelError` where a tensor is missing, unexpected or of another shape: the library
    itself would fill it with random numbers and go on.
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
    wrong = {what: sorted(loaded[f"{what}_keys"]) for what in ("missing", "unexpected")}
    if any(wrong.values()):
        raise ModelError(
            f"the weights at {name} are not those of a {type(model).__name__}: "
            + "; ".join(f"{what} {names[:5]}" for what, names in wrong.items() if names)
        )
    return model


@contextmanager
def explained(diagnosis: str) -> Iterator[None]:
    """Turn whatever the library raises into a `ModelError` that begins with `diagnosis`."""
    try:
        yield
    except ModelError:
        raise
    except Exception as error:
        raise ModelError(f"{diagnosis}\n  {_summary(error)}") from error


def unusable(source: str, part: str) -> str:
    """What to tell a user whose model at `source`, a directory or hub name, lacks a good `part`."""
    if Path(source).is_dir():
        return (
            f"{source}: no usable {part} in this directory. It must be a Hugging Face model "
            "directory: config.json, *.safetensors and the tokenizer's files"
        )
    if Path(source).is_absolute() or source.startswith((".", "~")) or source.count("/") > 1:
        return f"{source}: no such directory. Give an existing one, or a model's name on the hub"
    return (
        f"{source}: cannot get its {part}. There is no such directory here; if it is a name on the "
        "hub, check its spelling and the network, or download it and give the directory"
    )


def _summary(error: BaseException) -> str:
    """The beginning of what the library said, which can be very long."""
    return textwrap.shorten(f"{type(error).__name__}: {error}", width=400, placeholder=" ...")
