"""Inference servers of the tiny model, each in its own process."""

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

from tests.support.commands import ROOT
from tests.support.tiny_model import tiny_model
from torchrl_ckpt.serving_api.listener import open_listener

SERVE = "tests.support.serve_tiny"
KEY = "the-key-of-the-tests"
AUTHORIZED = {"Authorization": f"Bearer {KEY}"}
API_KEY = "TORCHRL_CKPT_API_KEY"


@pytest.fixture(scope="session", name="published")
def publish_weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Export two policies with random weights, `step_0` and `step_1`; return their directory."""
    root = tmp_path_factory.mktemp("weights")
    model = tiny_model()
    for step in (0, 1):
        torch.manual_seed(step)
        model.export(model.build(pretrained=False).state_dict(), root / f"step_{step}")
    return root


@dataclass(frozen=True)
class Server:
    """A server in its own process."""

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
    """Run a server of the tiny model with random weights, on an inherited socket.

    `options` are keys of its recipe's `[inference]`; its output goes to `log`.
    """
    with open_listener("127.0.0.1", 0) as sock, ExitStack() as files:
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


class StartedServer(Protocol):
    """A server whose start `wait_until_up` can wait for."""

    @property
    def base_url(self) -> str: ...

    @property
    def process(self) -> subprocess.Popen[Any]: ...


def wait_until_up(server: StartedServer, seconds: float = 60) -> None:
    """Return once `server` is healthy; that needs no key."""
    for _ in range(int(seconds * 10)):
        with suppress(httpx.TransportError):
            httpx.get(f"{server.base_url}/health", trust_env=False).raise_for_status()
            return
        assert server.process.poll() is None, "the server has ended"
        time.sleep(0.1)
    raise AssertionError("the server did not come up")


@pytest.fixture(scope="session", name="server")
def start_shared_server(published: Path) -> Iterator[Server]:
    """The server that all tests of a session share; its key is `KEY`."""
    with running_server(published) as server:
        wait_until_up(server)
        yield server


def failure(answer: httpx.Response, status: int) -> dict[str, Any]:
    """Return the error of an answer, which must have OpenAI's form and show no code."""
    assert answer.status_code == status, answer.text
    assert set(answer.json()) == {"error"}
    assert set(answer.json()["error"]) == {"message", "type", "param", "code"}
    assert "Traceback" not in answer.text
    assert ".py" not in answer.text
    return answer.json()["error"]
