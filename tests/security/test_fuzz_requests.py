"""Requests of any bytes to every route of a server: an answer in OpenAI's form or none, no
traceback, no hang and no growth."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

import httpx
import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.fuzzing import JSON_VALUES, TEXTS, mutated_bytes, mutated_json
from tests.support.inference_server import AUTHORIZED, KEY, Server, running_server, wait_until_up

ROUTES = (
    ("GET", "/health"),
    ("GET", "/metrics"),
    ("GET", "/v1/models"),
    ("GET", "/v1/models/x"),
    ("GET", "/weights"),
    ("POST", "/weights"),
    ("POST", "/v1/completions"),
    ("POST", "/v1/chat/completions"),
)
BODIES: dict[str, Any] = {
    "/v1/completions": {
        "model": "policy",
        "prompt": [[3, 4, 5], [3]],
        "max_tokens": 2,
        "n": 2,
        "temperature": 0.5,
        "top_p": 0.9,
        "stop": ["a"],
        "seed": 3,
        "logprobs": 1,
        "stream": False,
        "stream_options": {"include_usage": True},
        "stop_token_ids": [1],
    },
    "/v1/chat/completions": {
        "model": "policy",
        "messages": [{"role": "user", "content": "abc"}],
        "max_tokens": 2,
        "logprobs": True,
        "top_logprobs": 1,
        "response_format": {"type": "text"},
    },
    "/weights": {"path": "/nowhere/step_1", "version": 1},
}
FOUND: list[tuple[str, bytes]] = [
    ("/v1/completions", b"[" * 100_000),
    ("/v1/completions", b'{"prompt": "\\ud800", "max_tokens": 1}'),
    ("/v1/completions", b'{"prompt": [3], "max_tokens": 1' + b"0" * 5000 + b"}"),
    ("/v1/completions", b'{"prompt": [3], "max_tokens": 1, "temperature": NaN}'),
    ("/v1/chat/completions", b'{"messages": ' + b'[{"content": ' * 2000),
    ("/weights", b'{"path": "a\\u0000b", "version": 1}'),
]
"""Bodies that broke this server or others of its kind."""

_ANSWER_SECONDS = 20.0
_MAX_GROWTH_BYTES = 150 * 1024 * 1024


@dataclass(frozen=True)
class Target:
    """A server of this module, and what it has written."""

    server: Server
    log: Path

    @property
    def address(self) -> tuple[str, int]:
        parts = urlsplit(self.server.base_url)
        assert parts.hostname is not None
        assert parts.port is not None
        return parts.hostname, parts.port


@pytest.fixture(scope="module", name="target")
def start_target(published: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Target]:
    """Afterwards the server must be alive and as large as before, with no traceback in its log."""
    log = tmp_path_factory.mktemp("fuzzed") / "server.log"
    with running_server(published, log=log) as server:
        wait_until_up(server)
        target = Target(server, log)
        with open_client(target) as http:  # The first request allocates.
            assert http.post("/v1/completions", json={"prompt": [3], "max_tokens": 1}).is_success
        process = psutil.Process(server.process.pid)
        before = process.memory_info().rss
        yield target
        httpx.get(f"{server.base_url}/health", timeout=1.0, trust_env=False).raise_for_status()
        assert process.memory_info().rss - before < _MAX_GROWTH_BYTES
    assert "Traceback" not in log.read_text(errors="replace")


def open_client(target: Target) -> httpx.Client:
    return httpx.Client(
        base_url=target.server.base_url,
        headers=AUTHORIZED,
        timeout=_ANSWER_SECONDS,
        trust_env=False,
    )


def post(target: Target, path: str, body: bytes) -> None:
    with open_client(target) as http:
        headers = {"Content-Type": "application/json"}
        check(http.post(path, content=body, headers=headers))


def check(answer: httpx.Response) -> None:
    """Either it was answered as asked, or the mistake is named in OpenAI's form."""
    assert answer.status_code < 500 or answer.status_code in (501, 503), answer.text
    if answer.status_code >= 400:
        assert answer.json()["error"]["message"]
    assert "Traceback" not in answer.text


@pytest.mark.parametrize(("path", "body"), FOUND, ids=range(len(FOUND)))
def test_a_body_that_was_found_to_break_a_server_is_refused(
    target: Target, path: str, body: bytes
) -> None:
    post(target, path, body)


@given(data=st.data())
def test_any_json_is_answered(target: Target, data: st.DataObject) -> None:
    path = data.draw(st.sampled_from(list(BODIES)))
    body = data.draw(st.one_of(mutated_json(BODIES[path]), JSON_VALUES))
    with suppress(RecursionError):
        post(target, path, json.dumps(body).encode())


@given(data=st.data())
def test_any_bytes_as_json_are_answered(target: Target, data: st.DataObject) -> None:
    path = data.draw(st.sampled_from(list(BODIES)))
    post(target, path, data.draw(mutated_bytes(json.dumps(BODIES[path]).encode())))


HEADERS = st.dictionaries(
    st.sampled_from(
        ["Content-Type", "Content-Length", "Transfer-Encoding", "Host", "Expect", "X-A", "Range"]
    ),
    st.one_of(TEXTS, st.sampled_from(["chunked", "-1", "0", "9" * 30, "100-continue", "text/x"])),
    max_size=4,
)


@given(data=st.data())
def test_any_bytes_of_a_connection_are_answered_or_end_it(
    target: Target, data: st.DataObject
) -> None:
    method, path = data.draw(st.sampled_from(ROUTES))
    body = json.dumps(BODIES.get(path, {})).encode()
    lines = [f"{method} {path} HTTP/1.1", f"Authorization: Bearer {KEY}", "Connection: close"]
    given_headers = {"Host": "127.0.0.1", "Content-Length": str(len(body))}
    headers = given_headers | data.draw(HEADERS)
    lines += [f"{name}: {value}" for name, value in headers.items()]
    head = "\r\n".join(lines).encode(errors="surrogatepass") + b"\r\n\r\n"
    request = data.draw(st.one_of(st.just(head + body), mutated_bytes(head + body)))
    connection = socket.create_connection(target.address, timeout=_ANSWER_SECONDS)
    with connection, suppress(ConnectionError):
        connection.sendall(request)
        connection.shutdown(socket.SHUT_WR)
        answer = b"".join(iter(lambda: connection.recv(65536), b""))
        assert b"Traceback" not in answer
        assert b" 500 " not in answer.split(b"\r\n")[0]


@given(path=TEXTS, method=st.sampled_from(["GET", "POST", "PUT", "DELETE", "OPTIONS", "HEAD"]))
def test_any_path_is_answered(target: Target, path: str, method: str) -> None:
    raw_path = b"/" + quote(path, errors="surrogatepass").encode()
    url = httpx.URL(target.server.base_url, raw_path=raw_path)
    with open_client(target) as http:
        answer = http.request(method, url)
        assert answer.status_code < 500
        assert "Traceback" not in answer.text
