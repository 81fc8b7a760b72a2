"""A server whose engine has failed exits, so that a launcher can start it again."""

from __future__ import annotations

import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import httpx

from tests.support.commands import ROOT
from tests.support.inference_server import AUTHORIZED, Server, wait_until_up
from torchrl_ckpt.serving_api.listener import open_listener


def test_the_server_exits_with_its_engine_even_in_a_load_that_never_returns(tmp_path: Path) -> None:
    failure_file, log = tmp_path / "failure", tmp_path / "server.log"
    with open_listener("127.0.0.1", 0) as listener, log.open("wb") as output:
        arguments = [str(listener.fileno()), str(failure_file)]
        process = subprocess.Popen(
            [sys.executable, "-m", "tests.support.serve_failing_engine", *arguments],
            cwd=ROOT,
            pass_fds=[listener.fileno()],
            stdout=output,
            stderr=subprocess.STDOUT,
        )
        server = Server(f"http://127.0.0.1:{listener.getsockname()[1]}", process)
        try:
            wait_until_up(server)
            with (
                httpx.Client(base_url=server.base_url, trust_env=False, timeout=30) as http,
                ThreadPoolExecutor() as threads,
            ):
                body = {"directory": str(tmp_path), "version": 1}
                load = threads.submit(http.post, "/weights", json=body, headers=AUTHORIZED)
                time.sleep(0.3)
                failure_file.touch()
                assert health_error(http) in (None, "engine_died")
                assert process.wait(timeout=20) == 1
                with suppress(httpx.TransportError):
                    assert load.result().status_code == 500
        finally:
            process.kill()
            process.wait()
    logged = log.read_text()
    assert "the engine has died, so the server exits: killed by a test" in logged
    assert "\nerror: " not in logged  # a launcher would take it for the user's mistake


def health_error(http: httpx.Client) -> str | None:
    """Return the error code of a failing health check, or None if the server has exited already."""
    with suppress(httpx.TransportError):
        response = http.get("/health")
        assert response.status_code == 500
        return response.json()["error"]["code"]
    return None
