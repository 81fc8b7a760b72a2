"""A server that behaves oddly is left out, waited for or asked again; it does not end the run."""

from __future__ import annotations

import asyncio
import contextlib
import http.server
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest

from tests.orchestrator.conftest import Server
from tests.orchestrator.test_pool import Work
from torchrl_ckpt.plugin_api.engines import GenerationRequest, Sampling
from torchrl_ckpt.plugin_api.errors import ServerUnreachable
from torchrl_ckpt.serving_api.client import KeyRefused

pytestmark = pytest.mark.slow

REQUESTS = [GenerationRequest([[5, 6, place, 3]], [place], 2, Sampling(4)) for place in range(6)]

Oddity = Callable[[str, str, bytes], int | None]
"""What happens first to a request (method, path, body): None lets it through to the server behind;
a status is the answer."""


class Odd(http.server.ThreadingHTTPServer):
    """A server in front of an honest one, that does something of its own now and then."""

    daemon_threads = True

    def __init__(self, behind: Server) -> None:
        self.behind = behind
        self.oddity: Oddity = lambda method, path, body: None
        super().__init__(("127.0.0.1", 0), OddHandler)

    @property
    def base_url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class OddHandler(http.server.BaseHTTPRequestHandler):
    server: Odd

    def do_GET(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        status = self.server.oddity(self.command, self.path, body)
        content = b'{"error": {"message": "odd", "type": "server_error"}}'
        if status is None:
            kept = {name: self.headers[name] for name in ("Authorization", "Content-Type")}
            answer = httpx.request(
                *(self.command, f"{self.server.behind.base_url}{self.path}"),
                content=body,
                headers={name: value for name, value in kept.items() if value},
                timeout=60,
                trust_env=False,
            )
            status, content = answer.status_code, answer.content
        with contextlib.suppress(OSError):  # who has asked may have gone
            self.send_response(status)
            self.send_header("Retry-After", "0")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

    do_POST = do_GET

    def log_message(self, *_: object) -> None: ...


@pytest.fixture
def odd(shared_server: Server) -> Iterator[Odd]:
    with Odd(shared_server) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


@pytest.fixture(scope="module")
def honest(start_server: Callable[[], Server]) -> Server:
    return start_server()


def run(work: Work, *versions: int) -> list[int]:
    """Serve each version in turn, and generate. How many servers were attested after each."""

    async def scene() -> list[int]:
        attested = []
        async with contextlib.aclosing(work.pool):
            for version in versions:
                await work.serve(version)
                attested.append(len(work.pool._attested()))
                answers = await work.pool.complete(REQUESTS, lambda request: None)
                assert len(answers) == len(REQUESTS)
        return attested

    return asyncio.run(scene())


def times(number: int, status: int, matches: Callable[[str, bytes], bool]) -> Oddity:
    """Answer the first `number` requests that match with `status`."""
    left = iter(range(number))
    return lambda method, path, body: (
        status if matches(path, body) and next(left, None) is not None else None
    )


def test_a_server_too_busy_for_the_canary_is_asked_again(
    odd: Odd, root: Path, tmp_path: Path
) -> None:
    odd.oddity = times(2, 429, lambda path, body: b'"echo"' in body)
    assert run(Work([odd], root, tmp_path / "log", timeout=60), 0) == [1]


def test_a_request_on_which_a_server_fails_is_asked_again(
    odd: Odd, root: Path, tmp_path: Path
) -> None:
    odd.oddity = times(3, 500, lambda path, body: b'"prompt_seeds"' in body)
    work = Work([odd], root, tmp_path / "log", timeout=60)
    assert run(work, 0) == [1]
    assert work.messages() == []  # it is the request that failed, and not the server


def test_a_request_on_which_every_server_fails_ends_the_run(
    odd: Odd, root: Path, tmp_path: Path
) -> None:
    odd.oddity = times(1000, 500, lambda path, body: b'"prompt_seeds"' in body)
    with pytest.raises(ServerUnreachable, match="was asked 5 times in vain"):
        run(Work([odd], root, tmp_path / "log", timeout=60), 0)


@pytest.mark.parametrize(
    ("path", "status", "said"),
    [("/weights", 500, "cannot be used"), ("/health", 404, "is not there")],
)
def test_the_others_go_on_without_a_server_that_makes_no_sense(
    path: str, status: int, said: str, odd: Odd, honest: Server, root: Path, tmp_path: Path
) -> None:
    odd.oddity = lambda method, asked, body: status if asked == path else None
    work = Work([honest, odd], root, tmp_path / "log", timeout=60)
    assert run(work, 0, 1) == [1, 1]
    assert f"the inference server {odd.base_url} {said}" in work.messages()[0]


def test_a_refused_key_ends_the_run(odd: Odd, honest: Server, root: Path, tmp_path: Path) -> None:
    odd.oddity = lambda method, path, body: 401 if path == "/weights" else None
    with pytest.raises(KeyRefused):
        run(Work([honest, odd], root, tmp_path / "log", timeout=60), 0)


def test_a_server_that_hangs_in_a_load_is_noticed_by_its_health(
    odd: Odd, honest: Server, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torchrl_ckpt.serving_api.client._LONGEST_HEALTH_SECONDS", 1.0)
    hanging = threading.Event()

    def hang(method: str, path: str, body: bytes) -> None:
        if path == "/weights":
            hanging.set()
        if hanging.is_set():
            time.sleep(20)

    odd.oddity = hang
    work = Work([honest, odd], root, tmp_path / "log", timeout=600)
    began = time.monotonic()
    assert run(work, 0) == [1]
    assert time.monotonic() - began < 15
    assert "did not say within 1 s whether it is well" in work.messages()[0]


def test_a_server_that_is_back_is_waited_for_however_slowly_it_loads(
    odd: Odd, honest: Server, root: Path, tmp_path: Path
) -> None:
    is_back = False

    def slow(method: str, path: str, body: bytes) -> int | None:
        if path == "/weights" and is_back:
            time.sleep(4)
        return None if is_back else 500

    async def scene() -> None:
        nonlocal is_back
        odd.oddity = slow
        work = Work([honest, odd], root, tmp_path / "log", timeout=60)
        async with contextlib.aclosing(work.pool):
            await work.serve(0)
            assert len(work.pool._attested()) == 1
            is_back = True
            while not work.pool._servers[1].is_up:
                await work.pool.complete(REQUESTS, lambda request: None)
            await work.serve(1)
            assert len(work.pool._attested()) == 2
        assert "is back, and checked" in work.messages()[-1]

    asyncio.run(scene())


def test_a_busy_server_is_given_up_where_others_serve_the_policy(
    odd: Odd, honest: Server, root: Path, tmp_path: Path
) -> None:
    odd.oddity = lambda method, path, body: 429 if b'"echo"' in body else None
    work = Work([honest, odd], root, tmp_path / "log", timeout=4)
    began = time.monotonic()
    assert run(work, 0, 1) == [1, 1]
    assert time.monotonic() - began < 20  # it is waited for once
    assert "is well, but did not serve the policy within 4 s" in work.messages()[0]


def test_a_server_that_is_well_and_never_answers_ends_the_run(
    odd: Odd, root: Path, tmp_path: Path
) -> None:
    odd.oddity = lambda method, path, body: time.sleep(8 if b'"prompt_seeds"' in body else 0)
    with pytest.raises(ServerUnreachable, match="has answered anything for 3 s"):
        run(Work([odd], root, tmp_path / "log", timeout=3), 0)
