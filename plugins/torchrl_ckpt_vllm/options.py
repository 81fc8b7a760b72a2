"""The options of engine "vllm": those of vLLM by name, except those that are decided elsewhere."""

from __future__ import annotations

import os
from collections.abc import Collection
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from torchrl_ckpt.plugin_api.errors import RecipeError
from torchrl_ckpt.plugin_api.similar_names import did_you_mean, similar_name

_DECIDED_ELSEWHERE = {
    "model": "`inference.model` names the model",
    "tokenizer": "prompts and completions are token ids",
    "skip_tokenizer_init": "prompts and completions are token ids",
    "max_model_len": "give `inference.max_length`",
    "seed": "every request has its own seed",
    "logprobs_mode": "log-probabilities are those of the distribution that a token is drawn from",
    "worker_extension_cls": "the plugin loads new weights with it",
    "load_format": "weights are read from safetensors only",
    "trust_remote_code": "no code of a model directory is run",
    "hf_token": "the hub's key is read from the environment variable HF_TOKEN",
    "disable_log_stats": "the server keeps its own statistics (`/metrics`)",
    "use_tqdm_on_load": "the server writes no progress bars into its log",
    "data_parallel_size": "the canary that checks new weights would reach one replica only; start "
    "a server for each replica and list them in `orchestrator.client.base_urls`",
}
"""The options of vLLM that a recipe cannot set, with the reason."""

_CPU_CACHE_BYTES = 2**30


class VllmEngineConfig(BaseModel):
    """The `[engine]` table, less `type`. Any other option of vLLM's `AsyncEngineArgs` may be given,
    too, by its name there."""

    model_config = ConfigDict(extra="allow", frozen=True, use_attribute_docstrings=True)

    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """The dtype of the arithmetic. `auto`: float32 on CPU, bfloat16 on a GPU."""

    tensor_parallel_size: int = Field(default=1, ge=1)
    """The number of GPUs over which each layer is split."""

    gpu_memory_utilization: float = Field(default=0.9, gt=0, le=1)
    """The share of a GPU's memory for weights and cache."""

    kv_cache_memory_bytes: int | None = Field(default=None, gt=0)
    """The memory of the key-value cache. Unset: on a GPU what `gpu_memory_utilization` leaves, on
    CPU 1 GiB."""

    max_num_seqs: int = Field(default=256, ge=1)
    """The maximum number of sequences in one forward pass."""

    enforce_eager: bool | None = None
    """Run without compiling the model. Unset: true on CPU, where compiling takes longer than it
    saves and needs a C++ compiler; false on a GPU."""

    @model_validator(mode="after")
    def _check_decided_elsewhere(self) -> VllmEngineConfig:
        for name in sorted(_DECIDED_ELSEWHERE.keys() & (self.model_extra or {}).keys()):
            raise ValueError(f"`{name}` cannot be given here: {_DECIDED_ELSEWHERE[name]}")
        return self


def engine_arguments(
    config: VllmEngineConfig, *, known: Collection[str], on_cpu: bool
) -> dict[str, Any]:
    """Return the arguments for vLLM's `AsyncEngineArgs`, which has the parameters `known`.

    Raises `RecipeError` for an option that vLLM does not have, and for one that kills it on CPU.
    """
    for name in config.model_extra or {}:
        if name not in known:
            hint = did_you_mean(similar_name(name, known - _DECIDED_ELSEWHERE.keys()))
            raise RecipeError(f"inference.engine.{name}: vLLM has no such option{hint}")
    given = config.model_dump()
    if given["dtype"] == "auto":
        given["dtype"] = "float32" if on_cpu else "bfloat16"
    if given["enforce_eager"] is None:
        given["enforce_eager"] = on_cpu
    if on_cpu:
        given["kv_cache_memory_bytes"] = given["kv_cache_memory_bytes"] or _CPU_CACHE_BYTES
        # For a prompt that is read in several steps, vLLM 0.32 rewinds the request's random
        # generator. CPU generators cannot do that, so the worker would die.
        if given.get("enable_chunked_prefill"):
            raise RecipeError(
                "inference.engine.enable_chunked_prefill: on CPU a seeded prompt that is read in "
                "several steps kills vLLM's worker; leave it out"
            )
        given["enable_chunked_prefill"] = False
    return given


def set_environment(*, on_cpu: bool, threads: int) -> None:
    """Set the environment variables that vLLM reads, for this process and those that it starts.

    A variable that the user has set keeps its value.
    """
    settings = {"VLLM_NO_USAGE_STATS": "1", "VLLM_LOGGING_LEVEL": "ERROR"}
    if on_cpu:
        settings |= {
            # The trainer shares the cores, so threads bound to cores would wait for each other.
            "VLLM_CPU_OMP_THREADS_BIND": "nobind",
            "OMP_NUM_THREADS": str(threads or len(os.sched_getaffinity(0))),
            # Without this, part of the sampling code is compiled even with `enforce_eager`.
            "TORCH_COMPILE_DISABLE": "1",
        }
    for name, value in settings.items():
        os.environ.setdefault(name, value)
