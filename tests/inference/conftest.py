"""A tiny Qwen3 as the recipes have it, and servers of it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import httpx
import pytest
import torch
from torchrl_ckpt_transformers.model import TransformersModel, TransformersModelConfig

from torchrl_ckpt.serving_api.listener import bind

ROOT = Path(__file__).parents[2]
SERVE = "tests.inference.serve_tiny"
KEY = "the-key-of-the-tests"
AUTHORIZED = {"Authorization": f"Bearer {KEY}"}
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


@torch.no_grad()
def logprobs_of(module: torch.nn.Module, sequence: list[int]) -> list[float]:
    """Of every token but the first, in nats, as a trainer writes them into a canary."""
    tokens = torch.tensor([sequence])
    logits = module(tokens, torch.arange(len(sequence))[None])
    return logits.log_softmax(-1)[0, :-1].gather(-1, tokens[0, 1:, None])[:, 0].tolist()


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
def running_server(
    allowed: Path,
    *,
    key: str | None = KEY,
    options: Mapping[str, Any] | None = None,
    log: Path | None = None,
    **environment: str,
) -> Iterator[Server]:
    """A server of the tiny model with random weights, on an inherited socket.

    `options` are keys of its recipe's `[inference]`; what it prints goes to `log`.
    """
    with bind("127.0.0.1", 0) as sock, ExitStack() as files:
        process = subprocess.Popen(
            [
                *(sys.executable, "-m", SERVE),
                *(str(sock.fileno()), str(allowed), json.dumps(options or {})),
            ],
            cwd=ROOT,
            env=os.environ | environment | ({API_KEY: key} if key else {}),
            pass_fds=[sock.fileno()],
            stdout=files.enter_context(log.open("wb")) if log else None,
            stderr=subprocess.STDOUT if log else None,
        )
        try:
            yield Server(f"http://127.0.0.1:{sock.getsockname()[1]}", process)
        finally:
            process.terminate()
            process.wait(timeout=30)


class Starting(Protocol):
    """What is needed of a server to wait for it."""

    @property
    def base_url(self) -> str: ...

    @property
    def process(self) -> subprocess.Popen[bytes]: ...


def wait_until_up(server: Starting, seconds: float = 60) -> None:
    """Return once `server` answers, whatever its key."""
    for _ in range(int(seconds * 10)):
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


@pytest.fixture
def http(server: Server) -> Iterator[httpx.Client]:
    """Speaks to the shared server, without its key."""
    with httpx.Client(base_url=server.base_url, timeout=60, trust_env=False) as http:
        yield http


def failure(answer: httpx.Response, status: int) -> dict[str, Any]:
    """The error of an answer, which has OpenAI's form and no trace of the code."""
    assert answer.status_code == status, answer.text
    assert set(answer.json()) == {"error"}
    assert set(answer.json()["error"]) == {"message", "type", "param", "code"}
    assert "Traceback" not in answer.text
    assert ".py" not in answer.text
    return answer.json()["error"]
