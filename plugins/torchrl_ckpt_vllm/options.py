"""The options of engine "vllm": vLLM's own, by their names, less what is decided elsewhere."""

from __future__ import annotations

import os
from collections.abc import Collection
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from torchrl_ckpt.plugin_api.errors import RecipeError
from torchrl_ckpt.plugin_api.similar_names import did_you_mean, similar_name

_DECIDED = {
    "model": "`inference.model` says which model",
    "tokenizer": "token ids go in and out",
    "skip_tokenizer_init": "token ids go in and out",
    "max_model_len": "give `inference.max_length`",
    "seed": "every request brings its seed",
    "logprobs_mode": "log-probabilities are those of the distribution that was drawn from",
    "worker_extension_cls": "it loads the weights",
    "load_format": "weights are read from safetensors alone",
    "trust_remote_code": "no code of a model directory is run",
    "disable_log_stats": "the server keeps its own statistics (`/metrics`)",
    "use_tqdm_on_load": "the server writes no progress bars into its log",
    "data_parallel_size": "new weights are checked by a canary, which reaches one replica only; "
    "start a server for each and name them in `orchestrator.client.base_urls`",
}
"""vLLM's options that a recipe cannot set, and why."""

_CPU_CACHE_BYTES = 2**30


class VllmEngineConfig(BaseModel):
    """The `[engine]` table, less `type`. Every other option of vLLM's `AsyncEngineArgs` may be
    given as well, by its name there."""

    model_config = ConfigDict(extra="allow", frozen=True, use_attribute_docstrings=True)

    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """The arithmetic. `auto`: float32 on CPU, bfloat16 on a GPU."""

    tensor_parallel_size: int = Field(default=1, ge=1)
    """GPUs over which each layer is split."""

    gpu_memory_utilization: float = Field(default=0.9, gt=0, le=1)
    """The share of a GPU's memory for weights and cache."""

    kv_cache_memory_bytes: int | None = Field(default=None, gt=0)
    """Memory of the key-value cache. Unset: on a GPU what `gpu_memory_utilization` leaves, on CPU
    1 GiB."""

    max_num_seqs: int = Field(default=256, ge=1)
    """Sequences of one forward pass at most."""

    enforce_eager: bool | None = None
    """Run without compiling the model. Unset: on CPU, where compiling takes longer than it saves
    and needs a C++ compiler; not on a GPU."""

    @model_validator(mode="after")
    def _leaves_the_rest_alone(self) -> VllmEngineConfig:
        for name in sorted(_DECIDED.keys() & (self.model_extra or {}).keys()):
            raise ValueError(f"`{name}` cannot be given here: {_DECIDED[name]}")
        return self


def engine_arguments(
    config: VllmEngineConfig, *, known: Collection[str], on_cpu: bool
) -> dict[str, Any]:
    """What to call vLLM's `AsyncEngineArgs` with; `known` are the names that it has.

    Raises `RecipeError` for an option that vLLM has not, or that kills it on CPU.
    """
    for name in config.model_extra or {}:
        if name not in known:
            hint = did_you_mean(similar_name(name, known - _DECIDED.keys()))
            raise RecipeError(f"inference.engine.{name}: vLLM has no such option{hint}")
    given = config.model_dump()
    if given["dtype"] == "auto":
        given["dtype"] = "float32" if on_cpu else "bfloat16"
    if given["enforce_eager"] is None:
        given["enforce_eager"] = on_cpu
    if on_cpu:
        given["kv_cache_memory_bytes"] = given["kv_cache_memory_bytes"] or _CPU_CACHE_BYTES
        # A prompt that is read in several steps makes vLLM 0.32 rewind its request's random
        # generator, which those on CPU cannot do: the worker would die.
        if given.get("enable_chunked_prefill"):
            raise RecipeError(
                "inference.engine.enable_chunked_prefill: on CPU a seeded prompt that is read in "
                "several steps kills vLLM's worker; leave it out"
            )
        given["enable_chunked_prefill"] = False
    return given


def set_environment(*, on_cpu: bool, threads: int) -> None:
    """What vLLM reads from the environment, for this process and those that it starts.

    What the user has set stays as it is.
    """
    settings = {"VLLM_NO_USAGE_STATS": "1", "VLLM_LOGGING_LEVEL": "ERROR"}
    if on_cpu:
        settings |= {
            # The trainer shares the cores; bound to them, threads would wait for each other.
            "VLLM_CPU_OMP_THREADS_BIND": "nobind",
            "OMP_NUM_THREADS": str(threads or len(os.sched_getaffinity(0))),
            # Else some of the sampling code is compiled all the same.
            "TORCH_COMPILE_DISABLE": "1",
        }
    for name, value in settings.items():
        os.environ.setdefault(name, value)
