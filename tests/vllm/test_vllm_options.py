"""vLLM's options in a recipe are checked as early as they can be, mostly without vLLM."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import ValidationError
from torchrl_ckpt_vllm.options import VllmEngineConfig, engine_arguments
from torchrl_ckpt_vllm.requests import sample_seed

from tests.jobs.commands import RECIPES, run, succeed

KNOWN = {*VllmEngineConfig.model_fields, "max_num_batched_tokens", "max_model_len"}


def test_the_recipe_is_checked_where_there_is_no_vllm(tmp_path: Path) -> None:
    shown = succeed("rl", "@", RECIPES / "rl_reverse_vllm.toml", "--dry-run", cwd=tmp_path)
    assert "the recipe is good" in shown.out


def test_an_option_that_is_decided_elsewhere_is_refused_with_the_reason(tmp_path: Path) -> None:
    recipe = ("rl", "@", RECIPES / "rl_reverse_vllm.toml", "--dry-run")
    refused = run(*recipe, "--inference.engine.max-model-len", 64, cwd=tmp_path)
    assert refused.code == 2
    assert "give `inference.max_length`" in refused.err
    with pytest.raises(ValidationError, match="no code of a model directory is run"):
        VllmEngineConfig(trust_remote_code=True)


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
