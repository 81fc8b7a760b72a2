"""A tiny Qwen3 as the recipes have it, and servers of it."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest
import torch
from torchrl_ckpt_transformers.model import TransformersModel, TransformersModelConfig

from torchrl_ckpt.inference.server import bind

ROOT = Path(__file__).parents[2]
SERVE = "tests.inference.serve_tiny"
KEY = "the-key-of-the-tests"
API_KEY = "TORCHRL_CKPT_API_KEY"
TOKENIZER = ROOT / "recipes" / "reverse" / "tokenizer"

TINY = {
    "num_hidden_layers": 2,
    "hidden_size": 128,
    "intermediate_size": 384,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "head_dim": 32,
    "max_position_embeddings": 128,
    "tie_word_embeddings": False,
}


def tiny_model(**options: object) -> TransformersModel:
    """A model plugin for a random tiny Qwen3; `options` change its `config`."""
    return TransformersModel(
        TransformersModelConfig(
            architecture="qwen3", tokenizer=str(TOKENIZER), config={**TINY, **options}
        )
    )


@pytest.fixture(scope="session")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with two policies, `step_0` and `step_1`, of random weights."""
    root = tmp_path_factory.mktemp("weights")
    model = tiny_model()
    for step in (0, 1):
        torch.manual_seed(step)
        model.export(model.build(pretrained=False).state_dict(), root / f"step_{step}")
    return root


@dataclass(frozen=True)
class Server:
    """A server in a process of its own."""

    base_url: str
    process: subprocess.Popen[bytes]


@contextmanager
def running_server(allowed: Path, *, key: str | None = KEY, **environment: str) -> Iterator[Server]:
    """A server of the tiny model with random weights, on an inherited socket."""
    with bind("127.0.0.1", 0) as sock:
        process = subprocess.Popen(
            [sys.executable, "-m", SERVE, str(sock.fileno()), str(allowed)],
            cwd=ROOT,
            env=os.environ | environment | ({API_KEY: key} if key else {}),
            pass_fds=[sock.fileno()],
        )
        try:
            yield Server(f"http://127.0.0.1:{sock.getsockname()[1]}", process)
        finally:
            process.terminate()
            process.wait(timeout=30)


def wait_until_up(server: Server) -> None:
    """Return once `server` answers, whatever its key."""
    for _ in range(600):
        with suppress(httpx.TransportError):
            httpx.get(f"{server.base_url}/health", trust_env=False).raise_for_status()
            return
        assert server.process.poll() is None, "the server has ended"
        time.sleep(0.1)
    raise AssertionError("the server did not come up")


@pytest.fixture(scope="session")
def server(published: Path) -> Iterator[Server]:
    """One server for all tests that share it; its key is `KEY`."""
    with running_server(published) as server:
        wait_until_up(server)
        yield server
