"""The socket that an inference server listens on, bound before any process starts."""

from __future__ import annotations

import contextlib
import errno
import socket

import psutil

from torchrl_ckpt.plugin_api.errors import AddressInUse


def open_listener(host: str, port: int) -> socket.socket:
    """A socket at the address, which no one else can have now; port 0 is any free one.

    Raises `AddressInUse`, naming who has it where that can be seen.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM
        )[0]
    except socket.gaierror as error:
        raise AddressInUse(f"inference.host = {host!r}: {error.strerror}") from error
    bound = socket.socket(family, kind, protocol)
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        bound.bind(address)
        # From here on the port is ours: two sockets may be bound to one, but not listen on it.
        bound.listen()
    except OSError as error:
        bound.close()
        if error.errno == errno.EADDRINUSE:
            raise AddressInUse(
                f"{host}:{port} is taken{_holder(port)}. End that, or choose another port: "
                "`--inference.port 0` takes any free one"
            ) from error
        raise AddressInUse(f"cannot listen on {host}:{port}: {error.strerror}") from error
    return bound


def _holder(port: int) -> str:
    """Who listens on `port`, as far as the system tells."""
    with contextlib.suppress(psutil.Error):
        for connection in psutil.net_connections("tcp"):
            if connection.laddr and connection.laddr.port == port and connection.pid:
                command = " ".join(psutil.Process(connection.pid).cmdline())[:120]
                return f" by process {connection.pid} ({command})"
    return ""
