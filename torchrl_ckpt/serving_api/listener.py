"""The socket that an inference server listens on, opened before the server's process starts."""

from __future__ import annotations

import contextlib
import errno
import socket

import psutil

from torchrl_ckpt.plugin_api.errors import AddressInUse


def open_listener(host: str, port: int) -> socket.socket:
    """Return a socket that listens at the address; port 0 takes any free port.

    Raises `AddressInUse`, which names the process that has the port if that can be seen.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM
        )[0]
    except socket.gaierror as error:
        raise AddressInUse(f"inference.host = {host!r}: {error.strerror}") from error
    listener = socket.socket(family, kind, protocol)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind(address)
        # Listen at once: two sockets may be bound to one port, but only one may listen on it.
        listener.listen()
    except OSError as error:
        listener.close()
        if error.errno == errno.EADDRINUSE:
            raise AddressInUse(
                f"{host}:{port} is taken{_holder(port)}. End that process, or choose another port: "
                "`--inference.port 0` takes any free one"
            ) from error
        raise AddressInUse(f"cannot listen on {host}:{port}: {error.strerror}") from error
    return listener


def _holder(port: int) -> str:
    """Describe the process that listens on `port`; empty if the system does not show it."""
    with contextlib.suppress(psutil.Error):
        for connection in psutil.net_connections("tcp"):
            if connection.laddr and connection.laddr.port == port and connection.pid:
                command = " ".join(psutil.Process(connection.pid).cmdline())[:120]
                return f" by process {connection.pid} ({command})"
    return ""
