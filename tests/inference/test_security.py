"""Which routes need the key, from where weights may load, and that no key is logged."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi.routing import APIRoute

from tests.support.inference_server import (
    AUTHORIZED,
    KEY,
    Server,
    failure,
    running_server,
    wait_until_up,
)
from tests.support.scripted_engine import ScriptedEngine
from tests.support.tiny_model import tiny_model
from torchrl_ckpt.config.inference import InferenceConfig
from torchrl_ckpt.inference.app import build_app
from torchrl_ckpt.inference.http_errors import Forbidden
from torchrl_ckpt.inference.routes.weights import allowed_directory
from torchrl_ckpt.plugin_api.errors import ModelError

# The routes of a server on loopback that need no key; they change nothing.
OPEN_ON_LOOPBACK = {
    ("POST", "/v1/completions"),
    ("POST", "/v1/chat/completions"),
    ("GET", "/v1/models"),
    ("GET", "/v1/models/{name:path}"),
    ("GET", "/metrics"),
    ("GET", "/health"),
}
OPEN_EVERYWHERE = {("GET", "/health")}

NO_KEYS: list[dict[str, Any]] = [
    {},
    {"Authorization": ""},
    {"Authorization": "Bearer wrong"},
    {"Authorization": "Bearer"},
    {"Authorization": KEY},
    {"Authorization": f"Basic {KEY}"},
    {"Authorization": "Bearer schlüssel".encode()},
    {"Authorization": f"Bearer {KEY}x"},
    {"Authorization": f"Bearer {KEY[:-1]}"},
    {"X-Api-Key": KEY},
]


def routes_of(host: str) -> set[tuple[str, str]]:
    """Return every method and path of the application."""
    config = InferenceConfig(host=host, output_dir=Path("/"), model={"type": "transformers"})
    app = build_app(
        config,
        engine=ScriptedEngine([]),
        tokenizer=tiny_model().tokenizer(),
        key=KEY,
        allowed_dirs=[],
    )
    flat, pending = [], list(app.routes)
    while pending:
        route = pending.pop()
        if router := getattr(route, "original_router", None):  # FastAPI's included router
            pending += router.routes
            continue
        assert isinstance(route, APIRoute), f"this test does not know the kind of {route}"
        flat.append(route)
    return {(method, route.path) for route in flat for method in route.methods}


def assert_needs_key(http: httpx.Client, method: str, path: str, published: Path) -> None:
    body = {"directory": str(published / "step_1"), "version": 1}
    for headers in NO_KEYS:
        answer = http.request(method, path, json=body, headers=headers)
        assert failure(answer, 401)["code"] == "invalid_api_key", (method, path, headers)


def test_on_loopback_every_route_that_changes_something_needs_the_key(
    http: httpx.Client, published: Path
) -> None:
    guarded = routes_of("127.0.0.1") - OPEN_ON_LOOPBACK
    assert guarded >= {("POST", "/weights"), ("GET", "/weights")}
    before = http.get("/weights", headers=AUTHORIZED).json()
    for method, path in guarded:
        assert_needs_key(http, method, path, published)
    assert http.get("/weights", headers=AUTHORIZED).json() == before


def test_on_a_public_address_every_route_but_health_needs_the_key(
    published: Path,
) -> None:
    with running_server(published, options={"host": "0.0.0.0"}) as server:
        wait_until_up(server)
        with httpx.Client(base_url=server.base_url, trust_env=False, timeout=30) as http:
            for method, path in routes_of("0.0.0.0") - OPEN_EVERYWHERE:
                assert_needs_key(http, method, path.replace("{name:path}", "x"), published)
            assert http.get("/metrics", headers=AUTHORIZED).status_code == 200
            assert http.get("/health").json() == {"status": "ok"}


@pytest.mark.parametrize(
    "path",
    [
        "/%77eights",
        "/weights?key=" + KEY,
        "//weights",
        "/weights/",
        "/./weights",
        "/v1/../weights",
        "/WEIGHTS",
        "/weights%00",
        "/weights%2f",
        "/weights%0a",
        "/%77eights%0A",
    ],
)
def test_no_other_spelling_of_the_path_avoids_the_key(path: str, server: Server) -> None:
    """The path is sent unchanged; httpx would normalize it."""
    url = httpx.URL(server.base_url).copy_with(raw_path=path.encode())
    for answer in (
        httpx.get(url, trust_env=False),
        httpx.post(url, json={"directory": "/", "version": 1}, trust_env=False),
    ):
        assert answer.status_code in {401, 404}
        failure(answer, answer.status_code)


def forbidden_directories(published: Path, elsewhere: Path) -> dict[str, str]:
    """Return directories that must not be loaded, by what is wrong with them."""
    outside = elsewhere / "outside"
    (outside / "deep").mkdir(parents=True)
    (published / "link").symlink_to(outside)
    (published / "loop").symlink_to(published / "loop")
    planted = published / "planted"
    planted.mkdir()
    (planted / "model.safetensors").symlink_to(outside / "model.safetensors")
    nested = published / "nested" / "inner"
    nested.mkdir(parents=True)
    (nested / "more").symlink_to(outside)
    return {
        "elsewhere": str(outside),
        "the root": "/",
        "a name that begins alike": f"{published}x",
        "relative": "step_0",
        "relative to here": "./step_0",
        "empty": "",
        "home": "~/weights",
        "a URL": f"file://{published}/step_0",
        "up and away": f"{published}/step_0/../../outside",
        "up and back": f"{published}/step_0/../step_1",
        "far up": f"{published}{'/..' * 50}/etc",
        "a link": str(published / "link"),
        "a parent that is a link": str(published / "link" / "deep"),
        "a link to itself": str(published / "loop"),
        "below a link to itself": str(published / "loop" / "step_0"),
        "a file that is a link": str(planted),
        "a link deep inside": str(published / "nested"),
        "a null byte": f"{published}/step_0\0",
        "a null byte in the middle": f"{published}\0/step_0",
        "a name that is too long": f"{published}/{'a' * 5000}",
        "a path that is too long": f"{published}{'/a' * 50_000}",
        "half a character": f"{published}/\ud800",
    }


def test_weights_load_only_from_allowed_directories(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    allowed = tmp_path / "allowed"
    model = tiny_model()
    model.export(model.build(pretrained=False).state_dict(), allowed / "step_0")
    (allowed / "alias").symlink_to(allowed / "step_0")
    with running_server(allowed) as server:
        wait_until_up(server)
        with httpx.Client(base_url=server.base_url, trust_env=False, timeout=60) as http:

            def load(directory: str) -> httpx.Response:
                # As bytes, since httpx does not encode half a character.
                escaped = directory.encode("unicode-escape", "surrogatepass").decode()
                escaped = escaped.replace("\\x00", "\\u0000")
                body = f'{{"directory": "{escaped}", "version": 1}}'.encode()
                headers = AUTHORIZED | {"Content-Type": "application/json"}
                return http.post("/weights", content=body, headers=headers)

            before = http.get("/weights", headers=AUTHORIZED).json()
            for wrong, directory in forbidden_directories(allowed, tmp_path).items():
                answer = load(directory)
                assert answer.status_code == 403, (wrong, answer.text)
                assert failure(answer, 403)["param"] == "directory"
            # Nothing decodes these, so they are names of directories that do not exist.
            for encoded in ("%2e%2e/outside", "..%2foutside", "step_0%00", "%2fetc"):
                failure(load(f"{allowed}/{encoded}"), 404)
            assert http.get("/weights", headers=AUTHORIZED).json() == before

            # A link to an allowed directory is allowed.
            assert load(f"{allowed}/alias").json()["directory"] == f"{allowed}/step_0"


@pytest.mark.parametrize("shard", ["../../x.safetensors", "/etc/x.safetensors", "..", "", "a/b", 3])
def test_an_index_of_shards_names_files_beside_it(shard: object, tmp_path: Path) -> None:
    index = tmp_path / "step_1/model.safetensors.index.json"
    index.parent.mkdir()
    index.write_text(json.dumps({"weight_map": {"a": "model-1.safetensors", "b": shard}}))
    with pytest.raises(Forbidden, match=r"index\.json names the shard"):
        allowed_directory(str(index.parent), [tmp_path])
    index.write_text(json.dumps({"weight_map": {"a": "model-1.safetensors"}}))
    assert allowed_directory(str(index.parent), [tmp_path]) == index.parent.resolve()
    index.write_text("[]")
    with pytest.raises(ModelError, match="not an index of shards"):
        allowed_directory(str(index.parent), [tmp_path])


def test_no_key_is_left_in_the_log(published: Path, tmp_path: Path) -> None:
    log, wrong = tmp_path / "server.log", "a-wrong-key-of-the-tests"
    with running_server(published, log=log) as server:
        wait_until_up(server)
        good = {"directory": str(published / "step_0"), "version": 1}
        with httpx.Client(base_url=server.base_url, trust_env=False, timeout=60) as http:
            for key in (KEY, wrong):
                headers = {"Authorization": f"Bearer {key}"}
                for body in (good, good | {"directory": "/"}, {"directory": key}, key):
                    http.post("/weights", json=body, headers=headers)
                http.get("/weights", headers=headers)
                http.get(f"/{key}", headers=headers)
                http.post("/v1/completions", json={"prompt": key, "n": 0}, headers=headers)
                http.post("/v1/chat/completions", content=b"{", headers=headers)
        server.process.terminate()
        server.process.wait(timeout=30)
    logged = log.read_text()
    assert "serving transformers" in logged
    assert KEY not in logged
    assert wrong not in logged
