"""What is checked of a request before its body is read: host, key, and the body's type."""

from __future__ import annotations

import hmac
import ipaddress
import socket
from collections.abc import Callable, Sequence

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from torchrl_ckpt.inference.http_errors import (
    RequestError,
    UnsupportedBody,
    WrongHost,
    WrongKey,
    error_response,
)
from torchrl_ckpt.serving_api.keys import is_loopback


class AllowedHosts:
    """The names by which a server that listens on `bound` may be addressed.

    A web page can have its own name resolve to 127.0.0.1 (DNS rebinding), and its browser then lets
    it read what the server answers. So names must be known. Ports tell nothing: they differ behind
    a forwarded port.
    """

    def __init__(self, bound: str, names: Sequence[str]) -> None:
        self._public = not is_loopback(bound)
        self._names = {name.lower() for name in (bound, *names)}
        if self._public:
            self._names |= {
                socket.gethostname().lower(),
                socket.gethostname().lower().split(".")[0],
            }

    def allows(self, host: str) -> bool:
        """Whether `host`, the value of a `Host` header, names this server."""
        name = host.lower()
        if name.startswith("["):
            name, _, port = name[1:].partition("]")
            if port and not port.startswith(":"):
                return False
        elif name.count(":") == 1:
            name = name.partition(":")[0]
        name = name.removesuffix(".")
        return is_loopback(name) or name in self._names or (self._public and _is_address(name))


class Gate:
    """ASGI middleware that refuses requests for other hosts, without the key, or with a body that
    is not JSON, before it reads any of the body.

    `needs_key` tells whether a path does.
    """

    def __init__(
        self, app: ASGIApp, hosts: AllowedHosts, key: str, needs_key: Callable[[str], bool]
    ) -> None:
        self._app = app
        self._hosts = hosts
        self._expected = f"Bearer {key}".encode()
        self._needs_key = needs_key

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            try:
                self._check(scope)
            except RequestError as error:
                await error_response(error)(scope, receive, send)
                return
        await self._app(scope, receive, send)

    def _check(self, scope: Scope) -> None:
        headers = Headers(scope=scope)
        # Every browser sends a host; HTTP/1.0, which some health checks speak, has none.
        host = headers.get("Host")
        if host is not None and not self._hosts.allows(host):
            raise WrongHost(
                f"this server is not {host!r}; if it should be, name that in "
                "`inference.allowed_hosts`"
            )
        if self._needs_key(scope["path"]):
            self._check_key(headers.get("Authorization", "").encode("latin-1"))
        media_type = headers.get("Content-Type", "").partition(";")[0].strip().lower()
        if scope["method"] == "POST" and media_type != "application/json":
            raise UnsupportedBody(
                f"the body must be JSON: send `Content-Type: application/json`, not {media_type!r}"
            )

    def _check_key(self, given: bytes) -> None:
        if not given:
            raise WrongKey("this route needs the server's key: send `Authorization: Bearer KEY`")
        if not hmac.compare_digest(given, self._expected):
            raise WrongKey("the key in `Authorization` is not the server's key")


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True
