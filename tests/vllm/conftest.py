"""vLLM's environment as a user gets it, servers that run in it, and policies for them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.support.commands import RECIPES, free_port, running
from tests.support.inference_server import API_KEY, KEY
from tests.support.tiny_model import logprobs_of, tiny_model
from torchrl_ckpt.config.inference import InferenceConfig
from torchrl_ckpt.launcher.engine_env.engine_venv import server_python
from torchrl_ckpt.plugin_api.errors import EngineEnvironmentFailed
from torchrl_ckpt.run.weight_store import Canary, Policy
from torchrl_ckpt.serving_api.client import InferenceClient

CANARY = [[5, 6, 7, 3, 7, 6, 5, 1], list(range(2, 28)), [9, 3]]


@pytest.fixture(scope="session")
def vllm_python() -> Path:
    """The interpreter of vLLM's environment, which is made now if this is the first use."""
    recipe: dict[str, Any] = {"model": {"type": "transformers"}, "engine": {"type": "vllm"}}
    try:
        return server_python(InferenceConfig.model_validate({**recipe, "output_dir": "unused"}))
    except EngineEnvironmentFailed as error:
        pytest.skip(f"vLLM cannot be installed here: {error}")


@dataclass(frozen=True)
class Published:
    """Policies of random weights, and the modules that they are of, by version."""

    root: Path
    modules: Mapping[int, torch.nn.Module]

    def directory(self, version: int) -> Path:
        return self.root / f"step_{version}"

    def policy(self, version: int) -> Policy:
        """As a trainer would publish it."""
        expected = [self.logprobs(version, sequence) for sequence in CANARY]
        return Policy(version, 1, False, Canary(CANARY, expected, "float32"), None)

    def logprobs(self, version: int, sequence: list[int]) -> list[float]:
        return logprobs_of(self.modules[version], sequence)


def publish(root: Path, *, tied: bool) -> Published:
    model, modules = tiny_model(tie_word_embeddings=tied), {}
    for version in (0, 1):
        torch.manual_seed(version)
        modules[version] = model.build(pretrained=False)
        model.export(modules[version].state_dict(), root / f"step_{version}")
    return Published(root, modules)


@pytest.fixture(scope="session")
def tied(tmp_path_factory: pytest.TempPathFactory) -> Published:
    """Policies of a model whose output layer is its embedding."""
    return publish(tmp_path_factory.mktemp("tied"), tied=True)


@dataclass(frozen=True)
class VllmServer:
    base_url: str
    process: Any
    log: Path

    def client(self) -> InferenceClient:
        return InferenceClient(self.base_url, key=KEY, timeout=300)


@contextmanager
def vllm_server(
    cwd: Path, *options: object, env: Mapping[str, str] | None = None
) -> Iterator[VllmServer]:
    """`inference @ recipes/reverse/infer.toml --engine.type vllm`, started by hand."""
    port = free_port()
    command = ("inference", "@", RECIPES / "reverse/infer.toml", "--engine.type", "vllm")
    with running(
        *(*command, "--port", port, *options), cwd=cwd, env={API_KEY: KEY, **(env or {})}
    ) as process:
        yield VllmServer(f"http://127.0.0.1:{port}", process, cwd / "server.log")


@pytest.fixture(scope="session")
def server(
    vllm_python: Path, tied: Published, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[VllmServer]:
    """One server for all tests that share it. It may change its weights in the middle of a request,
    and its model's embeddings are tied: what is harder than the defaults."""
    with vllm_server(
        tmp_path_factory.mktemp("vllm"),
        *("--model.config.tie-word-embeddings", "true", "--weight-update", "keep"),
        *("--allowed-dirs", f'["{tied.root.parent}"]'),
    ) as server:
        yield server
