"""Inference servers with the engine `vllm`, and policies for them."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch

from tests.support.commands import RECIPES, free_port, running
from tests.support.inference_server import API_KEY, KEY, wait_until_up
from tests.support.tiny_model import logprobs_of, tiny_model
from torchrl_ckpt.run.weight_store import Canary, Policy
from torchrl_ckpt.serving_api.client import InferenceClient

CANARY = [[5, 6, 7, 3, 7, 6, 5, 1], list(range(2, 28)), [9, 3]]

_START_SECONDS = 300


@dataclass(frozen=True)
class RandomPolicies:
    """Exported policies of random weights, with their modules by version."""

    root: Path
    modules: Mapping[int, torch.nn.Module]

    def directory(self, version: int) -> Path:
        return self.root / f"step_{version}"

    def policy(self, version: int) -> Policy:
        """Return the policy as a trainer would publish it."""
        expected = [self.logprobs(version, sequence) for sequence in CANARY]
        return Policy(version, 1, False, Canary(CANARY, expected, "float32"), None)

    def logprobs(self, version: int, sequence: list[int]) -> list[float]:
        return logprobs_of(self.modules[version], sequence)


def export_random_policies(root: Path, *, tied: bool) -> RandomPolicies:
    """Export policies 0 and 1; `tied` ties the output layer to the embedding."""
    model, modules = tiny_model(tie_word_embeddings=tied), {}
    for version in (0, 1):
        torch.manual_seed(version)
        modules[version] = model.build(pretrained=False)
        model.export(modules[version].state_dict(), root / f"step_{version}")
    return RandomPolicies(root, modules)


@dataclass(frozen=True)
class VllmServer:
    """A server in its own process; its output goes to `log`."""

    base_url: str
    process: subprocess.Popen[str]
    log: Path

    def client(self) -> InferenceClient:
        return InferenceClient(self.base_url, key=KEY, timeout=300)


@contextmanager
def vllm_server(
    cwd: Path, *options: object, env: Mapping[str, str] | None = None
) -> Iterator[VllmServer]:
    """Run `inference @ recipes/reverse/infer.toml --engine.type vllm`; yield it once it is up."""
    port = free_port()
    command = ("inference", "@", RECIPES / "reverse/infer.toml", "--engine.type", "vllm")
    with running(
        *(*command, "--port", port, *options), cwd=cwd, env={API_KEY: KEY, **(env or {})}
    ) as process:
        server = VllmServer(f"http://127.0.0.1:{port}", process, cwd / "server.log")
        wait_until_up(server, seconds=_START_SECONDS)
        yield server
