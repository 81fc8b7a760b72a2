"""An HTTP server in front of a good one that can fail, stall or interfere with each request."""

from __future__ import annotations

import contextlib
import http.server
import threading
from collections.abc import Callable, Iterator

import httpx

Fault = Callable[[str, str, bytes], int | None]
"""Called first with the method, path and body of every request; a status is the answer, None
forwards the request."""

_FORWARDED_HEADERS = ("Authorization", "Content-Type")


class FaultyProxy(http.server.ThreadingHTTPServer):
    """Forwards to the server at `target_url`, except for what `fault` answers itself."""

    daemon_threads = True

    def __init__(self, target_url: str) -> None:
        self.target_url = target_url
        self.fault: Fault = lambda method, path, body: None
        super().__init__(("127.0.0.1", 0), _Handler)

    @property
    def base_url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


@contextlib.contextmanager
def faulty_proxy(target_url: str) -> Iterator[FaultyProxy]:
    """Run a proxy in a thread."""
    with FaultyProxy(target_url) as proxy:
        threading.Thread(target=proxy.serve_forever, daemon=True).start()
        yield proxy
        proxy.shutdown()


def fails(times: int, status: int, matches: Callable[[str, bytes], bool]) -> Fault:
    """Answer the first `times` requests whose path and body match with `status`."""
    left = iter(range(times))
    return lambda method, path, body: (
        status if matches(path, body) and next(left, None) is not None else None
    )


def is_canary(path: str, body: bytes) -> bool:
    return path == "/v1/completions" and b'"echo"' in body


def is_generation(path: str, body: bytes) -> bool:
    return path == "/v1/completions" and b'"prompt_seeds"' in body


class _Handler(http.server.BaseHTTPRequestHandler):
    server: FaultyProxy

    def do_GET(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        status = self.server.fault(self.command, self.path, body)
        content = b'{"error": {"message": "a fault of the test", "type": "server_error"}}'
        if status is None:
            headers = {name: self.headers[name] for name in _FORWARDED_HEADERS}
            answer = httpx.request(
                *(self.command, f"{self.server.target_url}{self.path}"),
                content=body,
                headers={name: value for name, value in headers.items() if value},
                timeout=60,
                trust_env=False,
            )
            status, content = answer.status_code, answer.content
        with contextlib.suppress(OSError):  # The client may have disconnected.
            self.send_response(status)
            self.send_header("Retry-After", "0")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

    do_POST = do_GET

    def log_message(self, *_: object) -> None: ...
