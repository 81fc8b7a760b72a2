"""Model "transformers": any causal language model of that library, pretrained or from scratch.

    [model]
    type = "transformers"
    name = "Qwen/Qwen3-0.6B"          # a hub name or a directory; or, from random weights,
    # architecture = "qwen3"
    # tokenizer = "tokenizer"
    # config = { num_hidden_layers = 2, hidden_size = 128 }

Only safetensors are read and no code of a model repository is run.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict, field_validator, model_validator

from torchrl_ckpt.plugin_api.errors import ModelError
from torchrl_ckpt.plugin_api.plugin import PathOrName
from torchrl_ckpt.plugin_api.similar_names import did_you_mean, similar_name
from torchrl_ckpt_transformers.pretrained import (
    NO_CODE,
    explained,
    load_causal_lm,
    load_hyper_parameters,
    unusable,
)

if TYPE_CHECKING:
    import torch
    from torch.distributed.device_mesh import DeviceMesh
    from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase


class TransformersModelConfig(BaseModel):
    """The `[model]` table, less `type`."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    name: PathOrName | None = None
    """A pretrained model: a directory in Hugging Face's format, or a name on the hub."""

    architecture: str | None = None
    """Start from random weights instead, with this architecture (transformers' `model_type`, such
    as `qwen3`)."""

    config: dict[str, Any] = {}
    """The hyper-parameters of `architecture`, by transformers' names. Vocabulary size and end token
    are the tokenizer's unless given."""

    tokenizer: PathOrName | None = None
    """The tokenizer's directory or hub name. Unset: the one that comes with `name`."""

    attention: str = "sdpa"
    """The attention implementation, by the library's name: `sdpa`, `eager`, `flash_attention_2`."""

    @field_validator("attention")
    @classmethod
    def _no_code_of_the_hub(cls, name: str) -> str:
        if "/" in name:
            raise ValueError(f"`{name}` is a kernel on the hub, and {NO_CODE}")
        return name

    @model_validator(mode="after")
    def _one_source(self) -> TransformersModelConfig:
        if (self.name is None) == (self.architecture is None):
            raise ValueError("give either `name` or `architecture`, and not both")
        if self.architecture is None and self.config:
            raise ValueError("`config` goes with `architecture`; a pretrained model brings its own")
        if self.architecture is not None and self.tokenizer is None:
            raise ValueError("`architecture` brings no tokenizer: give its `tokenizer` as well")
        return self


class TransformersModel:
    """A causal language model of the transformers library, sharded by FSDP2."""

    plugin_api = 1
    Config = TransformersModelConfig

    def __init__(self, config: TransformersModelConfig) -> None:
        self.config = config

    def tokenizer(self) -> PreTrainedTokenizerBase:
        """Load the tokenizer once, for all callers. Raises `ModelError` if there is none."""
        return self._tokenizer

    def hyper_parameters(self) -> PreTrainedConfig:
        """Return a new configuration object of the library. Raises `ModelError`."""
        return copy.deepcopy(self._hyper_parameters)

    def max_length(self) -> int | None:
        """Return the positions that the model was made for. Raises `ModelError`."""
        text_config = self._hyper_parameters.get_text_config()
        return getattr(text_config, "max_position_embeddings", None)

    def causal_lm(self, *, pretrained: bool) -> PreTrainedModel:
        """Build the library's own module on CPU in float32, which can also `generate`."""
        if not pretrained or self.config.name is None:
            return self._random()
        return load_causal_lm(self.config.name, attention=self.config.attention)

    def build(self, *, pretrained: bool) -> torch.nn.Module:
        """Build the model on CPU in float32; called with positions, it returns logits.

        The library keeps the documents of a row apart by their positions, provided that it gets
        neither a mask nor a cache.
        """
        model = self.causal_lm(pretrained=pretrained)
        model.register_forward_pre_hook(_from_positions, with_kwargs=True)
        model.register_forward_hook(lambda _module, _inputs, output: output.logits)
        return model

    def parallelize(
        self, model: torch.nn.Module, mesh: DeviceMesh, *, param_dtype: torch.dtype
    ) -> None:
        """Shard every decoder layer, then the rest; reduce gradients in float32."""
        import torch
        from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

        policy = MixedPrecisionPolicy(param_dtype=param_dtype, reduce_dtype=torch.float32)
        layer_classes = model._no_split_modules or ()
        for module in list(model.modules()):
            if type(module).__name__ in layer_classes:
                fully_shard(module, mesh=mesh, mp_policy=policy)
        fully_shard(model, mesh=mesh, mp_policy=policy)

    def export(self, state: Mapping[str, torch.Tensor], directory: Path) -> None:
        """Write full tensors as a Hugging Face directory; equal tensors give equal bytes.

        Of tied parameters only one is written, as the format requires.
        """
        import torch
        from transformers import GenerationConfig
        from transformers.utils import logging

        with torch.device("meta"):
            model = self._random()
        missing = model.state_dict().keys() - state.keys() - model.all_tied_weights_keys.keys()
        unexpected = state.keys() - model.state_dict().keys()
        if missing or unexpected:
            raise ModelError(
                f"cannot export to {directory}: the tensors are not those of this model "
                f"(missing {sorted(missing)[:3]}, unexpected {sorted(unexpected)[:3]})"
            )
        tokenizer = self.tokenizer()
        model.generation_config = GenerationConfig(
            eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id
        )
        model.to(next(iter(state.values())).dtype)
        written = {k: v for k, v in state.items() if k not in model.all_tied_weights_keys}
        logging.disable_progress_bar()
        model.save_pretrained(directory, state_dict=written)
        tokenizer.save_pretrained(directory)

    def digest(self, state: Mapping[str, torch.Tensor]) -> str:
        """Return the digest that the engine `transformers` computes of the exported `state`."""
        from torchrl_ckpt_transformers.digest import digest_tensors

        return digest_tensors({k: v for k, v in state.items() if k not in self._tied})

    # Read once: exports must not depend on the hub being reachable at every step.

    @cached_property
    def _tokenizer(self) -> PreTrainedTokenizerBase:
        from transformers import AutoTokenizer

        source = self.config.tokenizer or self.config.name or ""
        with explained(unusable(source, "tokenizer")):
            tokenizer = AutoTokenizer.from_pretrained(source, trust_remote_code=False)
            if len(tokenizer) <= len(tokenizer.all_special_ids):
                # The library's result for a model directory without a tokenizer.
                raise ValueError("its vocabulary is empty")
            if tokenizer.eos_token_id is None:
                raise ValueError("it has no end token (`eos_token`)")
        tokenizer.init_kwargs.pop("auto_map", None)  # as in `load_hyper_parameters`
        return tokenizer

    @cached_property
    def _tied(self) -> frozenset[str]:
        """The parameters that an export leaves out because they are tied to others."""
        import torch

        with torch.device("meta"):
            return frozenset(self._random().all_tied_weights_keys)

    @cached_property
    def _hyper_parameters(self) -> PreTrainedConfig:
        from transformers import AutoConfig

        if self.config.name is not None:
            return load_hyper_parameters(self.config.name)
        architecture, tokenizer = self.config.architecture or "", self.tokenizer()
        options = {"vocab_size": len(tokenizer), "eos_token_id": tokenizer.eos_token_id}
        _check_architecture(architecture)
        with explained(f"model.architecture = {architecture!r}"):
            _check_names(self.config.config, AutoConfig.for_model(architecture))
            return AutoConfig.for_model(architecture, **options | self.config.config)

    def _random(self) -> PreTrainedModel:
        import torch
        from transformers import AutoModelForCausalLM

        hyper_parameters = self.hyper_parameters()
        with explained(f"cannot build the model {self.config.architecture or self.config.name}"):
            return AutoModelForCausalLM.from_config(
                hyper_parameters,
                dtype=torch.float32,
                attn_implementation=self.config.attention,
                trust_remote_code=False,
            )


def _from_positions(
    _module: torch.nn.Module, inputs: tuple[torch.Tensor, ...], named: dict[str, torch.Tensor]
) -> tuple[tuple[()], dict[str, Any]]:
    """Pass the second positional argument as positions; the library would take it as a mask."""
    arguments = dict(zip(("input_ids", "position_ids"), inputs, strict=False)) | named
    return (), {**arguments, "use_cache": False}


def _check_architecture(name: str) -> None:
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES as KNOWN

    if name not in KNOWN:
        raise ModelError(
            f"model.architecture = {name!r}: transformers has no such causal language model"
            + did_you_mean(similar_name(name, KNOWN))
        )


def _check_names(options: Mapping[str, Any], defaults: PreTrainedConfig) -> None:
    """Raise `ModelError` for an unknown hyper-parameter; the library would silently accept it."""
    known = {*defaults.to_dict(), *defaults.attribute_map, "rope_theta", "rope_scaling"}
    for name in options.keys() - known:
        raise ModelError(
            f"model.config.{name}: {defaults.model_type} has no such hyper-parameter"
            + did_you_mean(similar_name(name, known))
        )
