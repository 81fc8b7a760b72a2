"""A recipe names one server or several, never both ways."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from torchrl_ckpt.config.orchestrator import ClientConfig

ONE, OTHER = "http://127.0.0.1:8001", "http://127.0.0.1:8002"


def test_the_servers_are_those_that_are_named_in_either_form() -> None:
    assert ClientConfig().servers == ["http://127.0.0.1:8000"]
    assert ClientConfig(base_url=ONE).servers == [ONE]
    assert ClientConfig(base_urls=[ONE, OTHER]).servers == [ONE, OTHER]


def test_both_forms_or_one_server_twice_are_an_error() -> None:
    with pytest.raises(ValidationError, match="either `base_url` or `base_urls`"):
        ClientConfig(base_url=ONE, base_urls=[OTHER])
    with pytest.raises(ValidationError, match="names a server twice"):
        ClientConfig(base_urls=[ONE, ONE])
