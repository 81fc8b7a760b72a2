"""Key files: readable only by this user, and removed with their server."""

from __future__ import annotations

from pathlib import Path

import pytest

from torchrl_ckpt.plugin_api.errors import ServerUnreachable
from torchrl_ckpt.serving_api.keys import find_key, is_loopback, published_key

URL = "http://127.0.0.1:8000"
VARIABLE = "A_KEY_OF_THE_TESTS"


@pytest.fixture(autouse=True)
def _state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))


def test_a_key_is_found_while_its_server_runs() -> None:
    assert find_key(URL, VARIABLE) is None
    with published_key("127.0.0.1", 8000, "secret") as path:
        assert find_key(URL, VARIABLE) == "secret"
        assert find_key("http://localhost:8000/", VARIABLE) == "secret"
        assert find_key("http://127.0.0.1:8001", VARIABLE) is None
        assert (path.stat().st_mode & 0o777, path.parent.stat().st_mode & 0o777) == (0o600, 0o700)
    assert find_key(URL, VARIABLE) is None


def test_the_environment_goes_before_the_file(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, "explicit")
    with published_key("127.0.0.1", 8000, "secret"):
        assert find_key(URL, VARIABLE) == "explicit"


def test_a_key_that_others_may_read_is_not_used() -> None:
    with published_key("127.0.0.1", 8000, "secret") as path:
        path.chmod(0o640)
        with pytest.raises(ServerUnreachable, match=r"open to other users.*640"):
            find_key(URL, VARIABLE)
        path.chmod(0o600)


def test_a_key_file_that_is_a_link_is_not_followed(tmp_path: Path) -> None:
    with published_key("127.0.0.1", 8000, "secret") as path:
        elsewhere = tmp_path / "elsewhere"
        path.rename(elsewhere)
        path.symlink_to(elsewhere)
        with pytest.raises(ServerUnreachable, match=str(path)):
            find_key(URL, VARIABLE)
        path.unlink()


def test_a_server_leaves_the_key_of_its_successor() -> None:
    with published_key("127.0.0.1", 8000, "old") as path:
        path.write_text("new")
    assert path.read_text() == "new"


@pytest.mark.parametrize(
    ("host", "loopback"),
    [
        ("127.0.0.1", True),
        ("127.8.9.1", True),
        ("::1", True),
        ("localhost", True),
        ("0.0.0.0", False),
        ("::", False),
        ("10.0.0.1", False),
        ("example.org", False),
    ],
)
def test_only_loopback_needs_no_key_of_its_own(host: str, loopback: bool) -> None:
    assert is_loopback(host) == loopback
