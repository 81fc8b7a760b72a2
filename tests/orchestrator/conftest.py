"""Servers of the tiny model in processes of their own, which can lie, die and come back."""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
import torch

from tests.support.inference_server import API_KEY, KEY, ROOT
from tests.support.tiny_model import logprobs_of, tiny_model
from torchrl_ckpt.run.weight_store import Canary, Policy, WeightStore
from torchrl_ckpt.serving_api.listener import open_listener

SEQUENCES = [[5, 6, 7, 3, 7, 6, 5, 1], [9, 3, 9, 1, 4, 4, 8, 2]]


class Server:
    """A server on a socket that is kept, as a job's runner keeps that of its server."""

    def __init__(self, allowed: Path, listener: socket.socket, lie_file: Path) -> None:
        self.base_url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        self._allowed = allowed
        self._listener = listener
        self._lie_file = lie_file
        self.lie("")
        self.start()

    def lie(self, lie: str) -> None:
        """What it does instead of serving what it is sent; nothing, or as `serve_liar` says."""
        self._lie_file.write_text(lie)

    def start(self) -> None:
        descriptor = self._listener.fileno()
        arguments = [str(descriptor), str(self._allowed), str(self._lie_file)]
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.orchestrator.serve_liar", *arguments],
            cwd=ROOT,
            env=os.environ | {API_KEY: KEY},
            pass_fds=[descriptor],
        )

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()


@pytest.fixture(scope="session")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where servers may load from. Below `published` the policies 0 and 1 of a run."""
    root = tmp_path_factory.mktemp("root")
    for version in (0, 1):
        publish(root / "published", version)
    return root


@pytest.fixture
def run_directory(root: Path, request: pytest.FixtureRequest) -> Path:
    """The test's own run, whose trainer has published the policies 0 and 1."""
    run = root / re.sub(r"\W", "_", request.node.name)
    shutil.copytree(root / "published", run)
    (run / "logs/attempt_1").mkdir(parents=True)
    return run


@pytest.fixture(scope="session")
def start_server(
    root: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Callable[[], Server]]:
    with ExitStack() as resources:

        def start() -> Server:
            listener = resources.enter_context(open_listener("127.0.0.1", 0))
            lie_file = tmp_path_factory.mktemp("lie") / "lie"
            server = Server(root, listener, lie_file)
            resources.callback(server.kill)
            return server

        yield start


@pytest.fixture(scope="session")
def shared_server(start_server: Callable[[], Server]) -> Server:
    return start_server()


@pytest.fixture
def server(shared_server: Server) -> Iterator[Server]:
    """One that is honest unless the test tells it to lie."""
    yield shared_server
    shared_server.lie("")


@pytest.fixture(autouse=True)
def _key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(API_KEY, KEY)


def publish(run: Path, version: int) -> Policy:
    """Publish random weights as policy `version` of attempt 1, as a trainer would."""
    plugin = tiny_model()
    torch.manual_seed(version + 100)
    module = plugin.build(pretrained=False).eval()
    state = module.state_dict()
    logprobs = [logprobs_of(module, sequence) for sequence in SEQUENCES]
    canary = Canary(SEQUENCES, logprobs, "float32")
    policy = Policy(version, 1, False, canary, plugin.digest(state))
    WeightStore(run / "weights").write(
        version, lambda directory: plugin.export(state, directory), policy
    )
    return policy
