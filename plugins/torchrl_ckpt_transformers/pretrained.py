"""Reads Hugging Face directories, and explains what is wrong with one that cannot be read.

Nothing that is read executes code: a model that needs code of its own is refused, and so are
pickled weights, also where an index or a configuration names them.
"""

from __future__ import annotations

import json
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torchrl_ckpt.plugin_api.errors import ModelError

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedConfig, PreTrainedModel

NO_CODE = "torchrl-ckpt executes no code that comes with a model"


def load_hyper_parameters(name: str) -> PreTrainedConfig:
    """Load the configuration at `name`, a directory or hub name. Raises `ModelError`."""
    from transformers import AutoConfig

    with explained(unusable(name, "configuration")):
        config = AutoConfig.from_pretrained(name, trust_remote_code=False)
    if hasattr(config, "auto_map"):  # It would lead the readers of an export to code.
        del config.auto_map
    return config


def load_causal_lm(
    name: str, *, attention: str, dtype: torch.dtype | str = "float32"
) -> PreTrainedModel:
    """Load the model at `name`, a directory or hub name, on CPU, every parameter from its files.

    Raises `ModelError` if a tensor is missing, unexpected or of another shape: the library itself
    would initialize it at random and continue.
    """
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()
    config = load_hyper_parameters(name)
    with explained(unusable(name, "weights")):
        _refuse_pickles(name, config)
        library: Any = AutoModelForCausalLM
        model, loaded = library.from_pretrained(
            name,
            config=config,
            dtype=dtype,
            attn_implementation=attention,
            use_safetensors=True,
            trust_remote_code=False,
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


def _refuse_pickles(name: str, config: PreTrainedConfig) -> None:
    """Raise `ModelError` for weights that `use_safetensors` lets pass although they are pickled:
    those that an index or the configuration names."""
    from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, cached_file

    named = {getattr(config, "transformers_weights", None) or SAFE_WEIGHTS_INDEX_NAME}
    index = cached_file(
        name,
        SAFE_WEIGHTS_INDEX_NAME,
        _raise_exceptions_for_missing_entries=False,
        _raise_exceptions_for_connection_errors=False,
    )
    if index is not None:
        named |= set(json.loads(Path(index).read_bytes())["weight_map"].values())
    suffixes = (".safetensors", ".safetensors.index.json")
    if pickled := sorted(file for file in named if not str(file).endswith(suffixes)):
        raise ModelError(
            f"the weights at {name} are in {', '.join(map(str, pickled[:3]))}, but only "
            "*.safetensors are read: a pickled file can hold code. Convert them"
        )


def _summary(error: BaseException) -> str:
    """Return the start of the library's message, which can be very long.

    Where the library offers to run the model's code, say that this is not done.
    """
    if "trust_remote_code" in str(error):
        return (
            f"It needs code of its own (`auto_map` in its JSON files), and {NO_CODE}, so it is not "
            "supported. Use a model whose class transformers itself has"
        )
    return textwrap.shorten(f"{type(error).__name__}: {error}", width=400, placeholder=" ...")
