"""An HTTP client of the shared server."""

from __future__ import annotations

from collections.abc import Iterator

import httpx
import pytest

from tests.support.inference_server import Server


@pytest.fixture(name="http")
def open_http_client(server: Server) -> Iterator[httpx.Client]:
    """A client of the shared server, without its key."""
    with httpx.Client(base_url=server.base_url, timeout=60, trust_env=False) as http:
        yield http
