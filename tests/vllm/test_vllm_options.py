"""vLLM's options in a recipe are checked as early as possible, mostly without vLLM."""

from __future__ import annotations

import ast
import inspect
from pathlib import Path

import pytest
import torchrl_ckpt_vllm.vllm_engine
from pydantic import ValidationError
from torchrl_ckpt_vllm.options import VllmEngineConfig, engine_arguments
from torchrl_ckpt_vllm.sampling_params import sample_seed, sampling_params

from tests.support.commands import RECIPES, run, succeed
from torchrl_ckpt.plugin_api.engines import Sampling
from torchrl_ckpt.plugin_api.errors import RecipeError

KNOWN = {*VllmEngineConfig.model_fields, "max_num_batched_tokens", "max_model_len"}


def test_a_recipe_is_checked_without_vllm(tmp_path: Path) -> None:
    shown = succeed("rl", "@", RECIPES / "rl_reverse_vllm.toml", "--dry-run", cwd=tmp_path)
    assert "the recipe is valid" in shown.out


def test_an_option_that_is_decided_elsewhere_is_refused_with_the_reason(tmp_path: Path) -> None:
    recipe = ("rl", "@", RECIPES / "rl_reverse_vllm.toml", "--dry-run")
    refused = run(*recipe, "--inference.engine.max-model-len", 64, cwd=tmp_path)
    assert refused.code == 2
    assert "give `inference.max_length`" in refused.err
    with pytest.raises(ValidationError, match="no code of a model directory is run"):
        VllmEngineConfig(trust_remote_code=True)


def set_by_start() -> list[str]:
    """Return the options that the engine sets itself."""
    [call] = [
        node
        for node in ast.walk(ast.parse(inspect.getsource(torchrl_ckpt_vllm.vllm_engine)))
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "AsyncEngineArgs"
    ]
    return [keyword.arg for keyword in call.keywords if keyword.arg is not None]


@pytest.mark.parametrize("name", set_by_start())
def test_an_option_that_the_engine_sets_is_refused_in_a_recipe(name: str) -> None:
    with pytest.raises(ValidationError, match=f"`{name}` cannot be given here: "):
        VllmEngineConfig(**{name: 1})


def test_replicas_that_the_canary_cannot_reach_are_refused() -> None:
    with pytest.raises(ValidationError, match=r"canary.*base_urls"):
        VllmEngineConfig(data_parallel_size=2)


def test_chunked_prefill_is_refused_on_cpu() -> None:
    config = VllmEngineConfig(enable_chunked_prefill=True)
    known = {*KNOWN, "enable_chunked_prefill"}
    with pytest.raises(RecipeError, match="on CPU a seeded prompt"):
        engine_arguments(config, known=known, on_cpu=True)
    assert engine_arguments(config, known=known, on_cpu=False)["enable_chunked_prefill"]


def test_a_temperature_that_vllm_would_raise_is_refused() -> None:
    with pytest.raises(ValueError, match=r"temperature of 0\.005 .* at least 0\.01"):
        sampling_params(Sampling(max_tokens=1, temperature=0.005), seed=0, sample=0)


def test_vllms_own_options_pass_by_name() -> None:
    config = VllmEngineConfig(max_num_batched_tokens=4096)
    given = engine_arguments(config, known=KNOWN, on_cpu=False)
    assert (given["max_num_batched_tokens"], given["dtype"]) == (4096, "bfloat16")


def test_float32_is_the_default_on_cpu_alone() -> None:
    given = engine_arguments(VllmEngineConfig(), known=KNOWN, on_cpu=True)
    assert (given["dtype"], given["enforce_eager"]) == ("float32", True)
    chosen = engine_arguments(VllmEngineConfig(dtype="bfloat16"), known=KNOWN, on_cpu=True)
    assert chosen["dtype"] == "bfloat16"


def test_prompts_with_neighbouring_seeds_share_no_noise() -> None:
    seeds = {sample_seed(seed, sample) for seed in range(64) for sample in range(64)}
    assert len(seeds) == 64 * 64
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert 0 <= sample_seed(2**64 - 1, 0) < 2**63
