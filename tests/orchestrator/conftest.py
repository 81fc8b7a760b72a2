"""Servers of the tiny model that can lie and be restarted, and a run with two policies."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.support.faulty_proxy import FaultyProxy, faulty_proxy
from tests.support.inference_server import API_KEY, KEY
from tests.support.policies import publish_random_policy
from tests.support.restartable_server import RestartableServer
from torchrl_ckpt.serving_api.listener import open_listener

StartServer = Callable[[], RestartableServer]


@pytest.fixture(scope="session", name="published_run")
def publish_policies(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose trainer has published the policies 0 and 1.

    The servers of these tests may load weights below its parent directory.
    """
    run = tmp_path_factory.mktemp("runs") / "published"
    for version in (0, 1):
        publish_random_policy(run, version)
    return run


@pytest.fixture(scope="session", name="start_server")
def make_start_server(
    published_run: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[StartServer]:
    with ExitStack() as resources:

        def start() -> RestartableServer:
            listener = resources.enter_context(open_listener("127.0.0.1", 0))
            lie_file = tmp_path_factory.mktemp("lie") / "lie"
            started = RestartableServer(published_run.parent, listener, lie_file)
            resources.callback(started.kill)
            return started

        yield start


@pytest.fixture(scope="session", name="shared_server")
def start_shared_server(start_server: StartServer) -> RestartableServer:
    return start_server()


@pytest.fixture(name="honest_server")
def make_honest(shared_server: RestartableServer) -> Iterator[RestartableServer]:
    """The shared server, which is honest until the test makes it lie."""
    yield shared_server
    shared_server.lie("")


@pytest.fixture(name="proxy")
def start_proxy(honest_server: RestartableServer) -> Iterator[FaultyProxy]:
    """A proxy of the honest server."""
    with faulty_proxy(honest_server.base_url) as started:
        yield started


@pytest.fixture(autouse=True, scope="module")
def _key() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(API_KEY, KEY)
        yield
