"""A server whose engine has died ends, so that whoever runs it can start it again."""

from __future__ import annotations

import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import httpx

from tests.support.inference_server import AUTHORIZED, ROOT, Server, wait_until_up
from torchrl_ckpt.serving_api.listener import open_listener


def test_the_server_ends_with_its_engine_even_in_a_load_that_never_returns(tmp_path: Path) -> None:
    grave, log = tmp_path / "grave", tmp_path / "server.log"
    with open_listener("127.0.0.1", 0) as listener, log.open("wb") as output:
        descriptor = listener.fileno()
        process = subprocess.Popen(
            [sys.executable, "-m", "tests.support.serve_mortal", str(descriptor), str(grave)],
            cwd=ROOT,
            pass_fds=[descriptor],
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
                grave.touch()
                failure = _health(http)
                assert failure is None or failure["code"] == "engine_died"
                assert process.wait(timeout=20) == 1
                with suppress(httpx.TransportError):
                    assert load.result().status_code == 500
        finally:
            process.kill()
            process.wait()
    said = log.read_text()
    assert "the engine has died, so the server exits: killed by a test" in said
    assert "\nerror: " not in said  # which would keep a job from starting it again


def _health(http: httpx.Client) -> dict[str, str] | None:
    """What the server says is wrong with it; None where it has gone already."""
    with suppress(httpx.TransportError):
        answer = http.get("/health")
        assert answer.status_code == 500
        return answer.json()["error"]
    return None
