"""Limits of bodies, sequences and waiting requests; clients that disconnect or read slowly."""

from __future__ import annotations

import json
import re
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.support.inference_server import Server, failure, running_server, wait_until_up
from tests.support.waiting import wait_until

OPTIONS = {
    "max_running": 1,
    "max_queued": 1,
    "max_sequences": 20_000,
    "max_body_bytes": 10_000,
    "client_timeout": 5,
}
# Takes the engine seconds unless cancelled.
LONG = {"prompt": [[4, 3]], "n": 3000, "max_tokens": 120, "seed": 1}
SHORT: dict[str, Any] = {"prompt": "ab>", "max_tokens": 2}


@pytest.fixture(scope="module", name="small")
def start_small_server(published: Path) -> Iterator[Server]:
    """A server with low limits."""
    with running_server(published, options=OPTIONS) as server:
        wait_until_up(server)
        yield server


@pytest.fixture(name="http")
def open_http_client(small: Server) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=small.base_url, timeout=120, trust_env=False) as client:
        yield client


def metric(http: httpx.Client, name: str) -> float:
    """Return the value of a metric; `name` includes its labels."""
    found = re.search(
        rf"^torchrl_ckpt_{re.escape(name)} (\S+)$", http.get("/metrics").text, re.MULTILINE
    )
    return float(found[1]) if found else 0.0


def wait_for(http: httpx.Client, name: str, value: float) -> None:
    wait_until(lambda: metric(http, name) == value, seconds=30)


def test_a_server_that_is_stopped_answers_the_running_request_and_waits_for_no_half_one(
    published: Path,
) -> None:
    with (
        running_server(published, options=OPTIONS) as server,
        httpx.Client(base_url=server.base_url, timeout=120, trust_env=False) as http,
        ThreadPoolExecutor() as thread,
    ):
        wait_until_up(server)
        answer = thread.submit(
            httpx.post, f"{server.base_url}/v1/completions", json=LONG, timeout=120
        )
        wait_for(http, "requests_in_flight", 1)
        with socket.create_connection((http.base_url.host, http.base_url.port)) as half:
            half.sendall(
                b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\n"
                b"Content-Type: application/json\r\nContent-Length: 9000\r\n\r\n{"
            )
            assert metric(http, "requests_in_flight") == 1  # it has been read by now
            server.process.terminate()
            assert answer.result().status_code == 200
            assert server.process.wait(timeout=10) == 0


def test_a_body_beyond_the_limit_is_refused(http: httpx.Client) -> None:
    body = b'{"prompt": "' + b"a" * 11_000 + b'"}'

    def chunked() -> Iterator[bytes]:
        for start in range(0, len(body), 1000):
            yield body[start : start + 1000]

    http.headers["Content-Type"] = "application/json"
    error = failure(http.post("/v1/completions", content=body), 413)
    assert error["code"] == "request_too_large"
    failure(http.post("/v1/completions", content=chunked()), 413)
    failure(http.post("/weights", content=body, headers={"Authorization": "Bearer x"}), 401)


def test_more_sequences_than_the_limit_are_refused(http: httpx.Client) -> None:
    many = {"prompt": [[4]] * 11, "n": 2000, "max_tokens": 1}
    error = failure(http.post("/v1/completions", json=many), 400)
    assert error["param"] == "n"
    assert "22000 sequences" in error["message"]
    assert "inference.max_sequences" in error["message"]
    echo = {"prompt": [[4]] * 4, "max_tokens": 0, "echo": True}
    assert http.post("/v1/completions", json=echo).status_code == 200


def begin(server: Server, **request: Any) -> socket.socket:
    """Send a request and return its socket; closing it disconnects the client."""
    host, port = server.base_url.removeprefix("http://").split(":")
    body = json.dumps(request)
    connection = socket.create_connection((host, int(port)))
    connection.sendall(
        f"POST /v1/completions HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(body)}\r\n\r\n{body}".encode()
    )
    return connection


@pytest.mark.parametrize("stream", [False, True])
def test_a_full_queue_refuses_and_a_disconnected_client_frees_its_slot(
    stream: bool, http: httpx.Client, small: Server
) -> None:
    disconnects = 'requests_total{route="/v1/completions",status="499"}'
    num_tokens, num_gone = metric(http, "completion_tokens_total"), metric(http, disconnects)
    running = begin(small, **LONG, stream=stream)
    wait_for(http, "requests_in_flight", 1)
    if stream:  # it has begun, so it counts as 200
        assert running.recv(12) == b"HTTP/1.1 200"
    queued = begin(small, **LONG, stream=stream)
    wait_for(http, "requests_queued", 1)

    answer = http.post("/v1/completions", json=SHORT)
    assert failure(answer, 429)["code"] == "rate_limit_exceeded"
    assert int(answer.headers["retry-after"]) >= 1

    queued.close()
    wait_for(http, "requests_queued", 0)
    running.close()
    wait_for(http, "requests_in_flight", 0)
    assert http.post("/v1/completions", json=SHORT).status_code == 200
    # If either had continued to its end, its tokens would have been counted.
    assert metric(http, "completion_tokens_total") - num_tokens <= SHORT["max_tokens"]
    assert metric(http, disconnects) - num_gone == (1 if stream else 2)


def test_a_client_that_reads_nothing_loses_its_place(http: httpx.Client, small: Server) -> None:
    # About ten megabytes of events, none of which is read.
    stream = begin(small, prompt=[4, 3], n=500, max_tokens=120, stream=True)
    wait_for(http, "requests_in_flight", 1)
    wait_for(http, "requests_in_flight", 0)
    assert http.post("/v1/completions", json=SHORT).status_code == 200
    stream.close()
