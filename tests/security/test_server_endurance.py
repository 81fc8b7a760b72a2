"""A server stays healthy under clients that send half of something, too much, or read nothing."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import httpx
import psutil
import pytest

from tests.support.inference_server import KEY, Server, failure, running_server, wait_until_up

MEGABYTE = 1024 * 1024
JSON = {"Content-Type": "application/json"}
OPTIONS = {"client_timeout": 3, "max_running": 2, "max_queued": 2, "max_body_bytes": 8 * MEGABYTE}


@pytest.fixture(scope="module", name="small")
def start_small_server(published: Path) -> Iterator[Server]:
    """A server with low limits, by hand and without a key for generation."""
    with running_server(published, options=OPTIONS) as server:
        wait_until_up(server)
        yield server


def connect(server: Server) -> socket.socket:
    host, port = server.base_url.removeprefix("http://").split(":")
    return socket.create_connection((host, int(port)), timeout=30)


def begin(server: Server, body: bytes, length: int | None = None) -> socket.socket:
    """Send a request for completions whose body may be shorter than announced."""
    connection = connect(server)
    head = (
        "POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        f"Content-Length: {length or len(body)}\r\n\r\n"
    )
    with suppress(OSError):  # refused before all of it was read
        connection.sendall(head.encode() + body)
    return connection


def memory(server: Server) -> int:
    return psutil.Process(server.process.pid).memory_info().rss


@contextmanager
def staying_healthy(server: Server, *, growth: int) -> Iterator[None]:
    """Assert that `/health` answers below 1 s, and memory grows by less than `growth` bytes."""
    before, ended = memory(server), threading.Event()

    def watch() -> tuple[float, int]:
        slowest, largest = 0.0, 0
        while not ended.wait(0.05):
            began = time.monotonic()
            with connect(server) as connection:
                connection.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
                assert connection.recv(12) == b"HTTP/1.1 200"
            slowest = max(slowest, time.monotonic() - began)
            largest = max(largest, memory(server) - before)
        return slowest, largest

    with ThreadPoolExecutor(1) as thread:
        watching = thread.submit(watch)
        try:
            yield
        finally:
            ended.set()
    slowest, largest = watching.result()  # A check that failed raises here.
    assert slowest < 1, f"a health check took {slowest:.1f} s"
    assert largest < growth, f"memory has grown by {largest / 1e6:.0f} MB"


def assert_disconnected(connection: socket.socket) -> None:
    connection.settimeout(15)
    try:
        while connection.recv(MEGABYTE):
            pass
    except ConnectionResetError:
        pass


def test_bodies_that_are_never_finished_hold_little_memory_and_end(small: Server) -> None:
    with ExitStack() as stack, staying_healthy(small, growth=100 * MEGABYTE):
        body = b'{"prompt": "' + b"a" * (7 * MEGABYTE)
        opened = [stack.enter_context(begin(small, body, 8 * MEGABYTE)) for _ in range(12)]
        for connection in opened:
            assert_disconnected(connection)


def test_bodies_in_tiny_chunks_are_not_parsed_to_their_end(small: Server) -> None:
    head = (
        b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        b"Transfer-Encoding: chunked\r\n\r\n"
    )
    with ExitStack() as stack:
        before = sum(psutil.Process(small.process.pid).cpu_times()[:2])
        connections = [stack.enter_context(connect(small)) for _ in range(10)]
        for connection in connections:
            with suppress(OSError):
                connection.sendall(head + b"1\r\n \r\n" * (MEGABYTE // 6))
        for connection in connections:
            assert_disconnected(connection)
        assert sum(psutil.Process(small.process.pid).cpu_times()[:2]) - before < 4
    text = json.dumps({"prompt": "ab>", "max_tokens": 1}).encode()
    with connect(small) as connection:
        chunks = b"".join(b"1\r\n%c\r\n" % byte for byte in text)
        connection.sendall(head + chunks + b"0\r\n\r\n")
        assert connection.recv(12) == b"HTTP/1.1 200"


def test_half_sent_heads_keep_nobody_out_and_end(small: Server) -> None:
    with ExitStack() as stack, staying_healthy(small, growth=60 * MEGABYTE):
        opened = []
        for _ in range(400):  # more than the server keeps at a time
            opened.append(stack.enter_context(connect(small)))
            opened[-1].sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\n")
        for connection in opened:
            assert_disconnected(connection)


@pytest.mark.parametrize("token", [b"-1", b"5"])
def test_a_prompt_of_a_million_ids_is_refused_at_once(small: Server, token: bytes) -> None:
    with staying_healthy(small, growth=200 * MEGABYTE):
        body = b'{"prompt": [' + b",".join([token] * 1_000_000) + b"]}"
        answer = httpx.post(
            f"{small.base_url}/v1/completions",
            content=body,
            headers=JSON,
            timeout=30,
            trust_env=False,
        )
        assert len(failure(answer, 400)["message"]) < 1100


MILLION = 1_000_000
MANY_VALUES = {
    "lists": b'{"prompt": [' + b",".join([b"[]"] * MILLION) + b"]}",
    "nested lists": b'{"user": ' + b"[" * MILLION,
    "objects": b'{"messages": [' + b",".join([b"{}"] * MILLION) + b"]}",
    "keys": b'{"prompt": {' + b",".join(b'"k%d":1' % n for n in range(MILLION // 2)) + b"}}",
    "items": b'{"stop_token_ids": [' + b",".join([b"1"] * 3 * MILLION) + b"]}",
    "texts": b'{"prompt": [' + b",".join([b'""'] * 2_500_000) + b"]}",
    "a text without an end": b'{"prompt": "' + b'\\"[' * (2 * MILLION),
}


@pytest.mark.parametrize("what", MANY_VALUES)
def test_a_body_of_many_values_is_refused_before_it_is_parsed(what: str, small: Server) -> None:
    with staying_healthy(small, growth=60 * MEGABYTE):
        answer = httpx.post(
            f"{small.base_url}/v1/completions",
            content=MANY_VALUES[what],
            headers=JSON,
            timeout=30,
            trust_env=False,
        )
        failure(answer, 400)


def test_signs_in_a_text_are_no_values(small: Server) -> None:
    request = {"prompt": "ab>", "max_tokens": 1, "user": '{[\\":,"]}' * 300_000}
    answer = httpx.post(
        f"{small.base_url}/v1/completions", json=request, timeout=30, trust_env=False
    )
    assert answer.status_code == 200


def test_a_text_that_is_too_long_is_refused_before_it_is_tokenized(small: Server) -> None:
    with staying_healthy(small, growth=60 * MEGABYTE):
        for request in (
            {"prompt": "ab " * 2_000_000},
            {"prompt": "ab", "model": "x" * 6_000_000},
        ):
            answer = httpx.post(
                f"{small.base_url}/v1/completions", json=request, timeout=30, trust_env=False
            )
            assert answer.status_code in (400, 404)
            assert len(answer.text) < 1500


@pytest.mark.slow
def test_streams_that_nobody_reads_are_cancelled(published: Path) -> None:
    request = {"prompt": [4, 3], "n": 4096, "max_tokens": 120, "stream": True, "logprobs": 1}
    with ExitStack() as stack:
        server = stack.enter_context(
            running_server(published, options={"client_timeout": 3}, key=None)
        )
        wait_until_up(server)
        stack.enter_context(staying_healthy(server, growth=300 * MEGABYTE))
        for _ in range(3):
            stack.enter_context(begin(server, json.dumps(request).encode()))
        time.sleep(20)
        answer = httpx.post(
            f"{server.base_url}/v1/completions",
            json={"prompt": "ab>", "max_tokens": 2},
            timeout=30,
            trust_env=False,
        )
        assert answer.status_code == 200


def test_other_hosts_and_other_bodies_are_refused(small: Server) -> None:
    with httpx.Client(base_url=small.base_url, trust_env=False, timeout=30) as http:
        for host in (
            "evil.example",
            "127.0.0.1.evil.example",
            "10.0.0.1",
            "localhost.evil.example",
            "[::1]evil.example",
        ):
            assert failure(http.get("/health", headers={"Host": host}), 421)["code"] == "wrong_host"
        for host in ("localhost", "localhost:9000", "127.0.0.1", "[::1]:80", "LOCALHOST."):
            assert http.get("/health", headers={"Host": host}).status_code == 200
        body = b'{"prompt": "ab>", "max_tokens": 1}'
        for kind in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data", ""):
            failure(http.post("/v1/completions", content=body, headers={"Content-Type": kind}), 415)
        kind = "application/json; charset=utf-8"
        answer = http.post("/v1/completions", content=body, headers={"Content-Type": kind})
        assert answer.status_code == 200


def test_a_key_is_checked_before_the_body_is_read(published: Path) -> None:
    options = OPTIONS | {"host": "0.0.0.0"}
    with running_server(published, options=options, key=KEY) as server:
        wait_until_up(server)
        with begin(server, b"{", 8 * MEGABYTE) as connection:
            assert connection.recv(12) == b"HTTP/1.1 401"
