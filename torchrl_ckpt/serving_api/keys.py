"""The key to a server's weights: from the environment, or from a file that only this user can read.

A server started by hand leaves its key in `$XDG_STATE_HOME/torchrl-ckpt/keys/HOST-PORT`, so that
the same user's jobs find it and no other user can change the weights.
"""

from __future__ import annotations

import ipaddress
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx

from torchrl_ckpt.plugin_api.durable_files import write_bytes
from torchrl_ckpt.plugin_api.errors import ServerUnreachable


def is_loopback(host: str) -> bool:
    """Return whether only this machine can reach `host`."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def find_key(base_url: str, variable: str) -> str | None:
    """Return the key of the server at `base_url`: from the environment's `variable`, else from the
    user's file, else None.

    Raises `ServerUnreachable` for a key file that other users can read or write.
    """
    if key := os.environ.get(variable):
        return key
    address = httpx.URL(base_url)  # read as the client reads it, which sends the key there
    port = address.port or (443 if address.scheme == "https" else 80)
    return _read(_key_file(address.host, port))


@contextmanager
def published_key(host: str, port: int, key: str) -> Iterator[Path]:
    """Leave `key` in a file for this user's other processes; remove the file after the block."""
    path = _key_file(host, port)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.parent.chmod(0o700)
    previous = os.umask(0o177)
    try:
        write_bytes(path, key.encode())
    finally:
        os.umask(previous)
    try:
        yield path
    finally:
        # Another server may have taken the port, and written the file, in the meantime.
        if _read(path) == key:
            path.unlink()


def _key_file(host: str, port: int) -> Path:
    state = Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state")
    name = "127.0.0.1" if host == "localhost" else host
    return state / "torchrl-ckpt" / "keys" / f"{name}-{port}"


def _read(path: Path) -> str | None:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise ServerUnreachable(f"cannot read the key file {path}: {error.strerror}") from error
    with os.fdopen(descriptor) as file:
        metadata = os.fstat(descriptor)
        if metadata.st_uid != os.getuid() or stat.S_IMODE(metadata.st_mode) & 0o077:
            raise ServerUnreachable(
                f"the key file {path} is open to other users (owner {metadata.st_uid}, mode "
                f"{stat.S_IMODE(metadata.st_mode):o}), so its key is not secret. Stop the server "
                "that wrote it, remove the file, and start the server again"
            )
        return file.read().strip()
