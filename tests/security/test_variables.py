"""A recipe sends no secret of the environment to an address that it names."""

from __future__ import annotations

import http.server
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.commands import RECIPES, run
from tests.support.recipe_files import Recipes
from torchrl_ckpt.config.inference import InferenceConfig
from torchrl_ckpt.config.orchestrator import ClientConfig
from torchrl_ckpt.config.section import Section
from torchrl_ckpt.plugin_api.errors import ServerUnreachable
from torchrl_ckpt.serving_api.client import InferenceClient
from torchrl_ckpt.serving_api.keys import find_key, published_key

STOLEN = "AWS_SECRET_ACCESS_KEY"


class Job(Section):
    """A recipe with a client."""

    client: ClientConfig = ClientConfig()
    inference: InferenceConfig | None = None


class _Thief(http.server.BaseHTTPRequestHandler):
    """Keeps the headers of every request and answers that it is healthy, or redirects."""

    server: _ThiefServer

    def do_GET(self) -> None:
        self.server.headers.append(dict(self.headers))
        self.send_response(307 if self.server.redirect_to else 200)
        self.send_header("Location", f"{self.server.redirect_to}{self.path}")
        self.end_headers()
        self.wfile.write(b'{"status": "ok"}')

    do_POST = do_GET

    def log_message(self, *_: object) -> None:
        pass


class _ThiefServer(http.server.ThreadingHTTPServer):
    redirect_to = ""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Thief)
        self.headers: list[dict[str, str]] = []
        threading.Thread(target=self.serve_forever, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


@pytest.fixture(name="thief")
def start_thief() -> Iterator[_ThiefServer]:
    thief = _ThiefServer()
    yield thief
    thief.shutdown()
    thief.server_close()


@pytest.fixture(name="recipes")
def make_recipes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Recipes:
    monkeypatch.chdir(tmp_path)
    return Recipes(tmp_path)


def test_the_command_does_not_send_a_variable_that_a_recipe_names(
    thief: _ThiefServer, tmp_path: Path
) -> None:
    recipe = tmp_path / "orch.toml"
    recipe.write_text(
        f"'@' = '{RECIPES / 'reverse/orch.toml'}'\n"
        f"client = {{base_url = '{thief.url}', timeout = 3, api_key_env = '{STOLEN}'}}\n"
    )
    finished = run(
        *("rl", "--trainer", "@", RECIPES / "reverse/train.toml", "--orchestrator", "@", recipe),
        cwd=tmp_path,
        env={STOLEN: "s3cret-of-aws"},
    )

    assert not any("s3cret-of-aws" in str(headers) for headers in thief.headers)
    assert finished.code == 2, finished
    for words in (
        "orch.toml:2",
        STOLEN,
        "TORCHRL_CKPT_",
        f"`--orchestrator.client.api-key-env {STOLEN}`",
    ):
        assert words in finished.err
    assert "s3cret-of-aws" not in finished.err


def test_no_file_may_name_another_variable_however_it_is_included(recipes: Recipes) -> None:
    named = f"api_key_env = '{STOLEN}'"
    recipes.write(
        whole=f"client = {{{named}}}",
        including="client = '@ --client.toml'",
        section=named,
    )
    recipes.write(**{"--client": named})
    for argv in ("@ whole.toml", "@ including.toml", "--client @ section.toml"):
        assert f"`client.api_key_env` is {STOLEN}, but" in recipes.error(Job, argv), argv


def test_a_server_of_a_recipe_cannot_take_another_variable_as_its_key(recipes: Recipes) -> None:
    recipes.write(
        infer=f"inference = {{model = 'toy', output_dir = 'o', api_key_env = '{STOLEN}'}}"
    )
    assert "`inference.api_key_env` is" in recipes.error(Job, "@ infer.toml")


def test_the_command_line_may_name_any_variable(recipes: Recipes) -> None:
    recipes.write(whole="client = {api_key_env = 'OTHER'}")
    for argv in (
        f"@ whole.toml --client.api-key-env {STOLEN}",
        f"@ whole.toml --client {{api_key_env='{STOLEN}'}}",
    ):
        assert recipes.resolve(Job, argv).client.api_key_env == STOLEN


def test_a_file_may_name_a_variable_with_the_prefix(recipes: Recipes) -> None:
    recipes.write(whole="client = {api_key_env = 'TORCHRL_CKPT_OTHER_KEY'}")
    assert recipes.resolve(Job, "@ whole.toml").client.api_key_env == "TORCHRL_CKPT_OTHER_KEY"


def test_an_address_with_a_password_is_refused_and_not_shown(recipes: Recipes) -> None:
    for url in ("http://me:s3cret@127.0.0.1:8000", "http://127.0.0.1:8000@s3cret"):
        recipes.write(whole=f"client = {{base_url = '{url}'}}")
        message = recipes.error(Job, "@ whole.toml")
        assert "must not hold a password" in message
        assert "s3cret" not in message


async def test_a_redirect_does_not_take_the_key_along(thief: _ThiefServer) -> None:
    redirecting = _ThiefServer()
    redirecting.redirect_to = thief.url
    async with InferenceClient(redirecting.url, key="s3cret", timeout=5) as client:
        with pytest.raises(ServerUnreachable):
            await client.loaded()
    redirecting.shutdown()
    redirecting.server_close()

    assert redirecting.headers[0]["Authorization"] == "Bearer s3cret"
    assert thief.headers == []


@pytest.mark.parametrize(
    "elsewhere",
    [
        "http://127.0.0.1:8001",
        "http://127.0.0.2:8000",
        "http://127.0.0.1.example.com:8000",
        "http://127.0.0.1:8000@example.com:8000",
        "http://example.com:8000/127.0.0.1:8000",
        "http://example.com:8000#@127.0.0.1:8000",
        "http://..:8000",
    ],
)
def test_a_stored_key_goes_to_its_server_only(
    elsewhere: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    with published_key("127.0.0.1", 8000, "secret"):
        assert find_key("http://127.0.0.1:8000", "TORCHRL_CKPT_UNSET") == "secret"
        assert find_key(elsewhere, "TORCHRL_CKPT_UNSET") is None
