"""`[client]` names one server or several, in one of two forms."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from torchrl_ckpt.config.orchestrator import ClientConfig

FIRST, SECOND = "http://127.0.0.1:8001", "http://127.0.0.1:8002"


def test_either_form_names_the_servers() -> None:
    assert ClientConfig().servers == ["http://127.0.0.1:8000"]
    assert ClientConfig(base_url=FIRST).servers == [FIRST]
    assert ClientConfig(base_urls=[FIRST, SECOND]).servers == [FIRST, SECOND]


def test_both_forms_or_one_server_twice_are_an_error() -> None:
    with pytest.raises(ValidationError, match="either `base_url` or `base_urls`"):
        ClientConfig(base_url=FIRST, base_urls=[SECOND])
    with pytest.raises(ValidationError, match="names a server twice"):
        ClientConfig(base_urls=[FIRST, FIRST])
