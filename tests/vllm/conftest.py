"""vLLM's environment as a user gets it, and a server that runs in it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.vllm_server import (
    RandomPolicies,
    VllmServer,
    export_random_policies,
    vllm_server,
)
from torchrl_ckpt.config.inference import InferenceConfig
from torchrl_ckpt.launcher.engine_env.engine_venv import server_python
from torchrl_ckpt.plugin_api.errors import EngineEnvironmentFailed


@pytest.fixture(scope="session", name="vllm_python")
def find_vllm_python() -> Path:
    """The interpreter of vLLM's environment, which the first use makes."""
    recipe: dict[str, Any] = {"model": {"type": "transformers"}, "engine": {"type": "vllm"}}
    try:
        return server_python(InferenceConfig.model_validate({**recipe, "output_dir": "unused"}))
    except EngineEnvironmentFailed as error:
        pytest.skip(f"vLLM cannot be installed here: {error}")


@pytest.fixture(scope="session", name="tied")
def export_tied_policies(tmp_path_factory: pytest.TempPathFactory) -> RandomPolicies:
    """Policies of a model whose output layer is tied to its embedding."""
    return export_random_policies(tmp_path_factory.mktemp("tied"), tied=True)


@pytest.fixture(scope="session", name="server")
def start_shared_server(
    vllm_python: Path, tied: RandomPolicies, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[VllmServer]:
    """The server that all tests share. It updates weights in flight, and its model's embeddings are
    tied: both are harder than the defaults."""
    with vllm_server(
        tmp_path_factory.mktemp("vllm"),
        *("--model.config.tie-word-embeddings", "true", "--weight-update", "keep"),
        *("--allowed-dirs", f'["{tied.root.parent}"]'),
    ) as server:
        yield server
