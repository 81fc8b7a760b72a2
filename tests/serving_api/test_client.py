"""The client: what it brings from a server, and what it says where there is none."""

from __future__ import annotations

import asyncio
import http.server
import json
import threading
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import pytest
import torch

from tests.support.inference_server import KEY, Server
from tests.support.tiny_model import tiny_model
from torchrl_ckpt.plugin_api.engines import GenerationRequest, Sampling
from torchrl_ckpt.plugin_api.errors import DataError, ServerUnreachable, WrongPolicy
from torchrl_ckpt.serving_api.client import InferenceClient, RequestFailed, ServerBusy, ServerLost
from torchrl_ckpt.serving_api.protocol import LoadedWeights

T = TypeVar("T")

REQUEST = GenerationRequest(
    [[5, 6, 7, 3], [9, 3]], [11, 2**64 - 1], 3, Sampling(8, stop_token_ids=(1,))
)


def ask(
    base_url: str,
    question: Callable[[InferenceClient], Awaitable[T]],
    *,
    key: str | None = KEY,
    timeout: float = 60,
) -> T:
    async def asked() -> T:
        async with InferenceClient(base_url, key=key, timeout=timeout) as client:
            return await question(client)

    return asyncio.run(asked())


def load(server: Server, directory: Path, version: int) -> LoadedWeights:
    return ask(server.base_url, lambda client: client.load_weights(directory, version))


def test_generation_is_the_engines_with_the_policy_that_made_it(
    server: Server, published: Path
) -> None:
    loaded = load(server, published / "step_0", 40)
    completion = ask(server.base_url, lambda client: client.complete(REQUEST))
    assert (loaded.version, completion.weights_ids) == (40, {loaded.weights_id})
    assert [choice.index for choice in completion.choices] == list(range(6))
    for choice in completion.choices:
        assert choice.token_ids is not None
        assert 1 <= len(choice.token_ids) == len(choice.token_logprobs) <= 8
        assert choice.finish_reason == ("stop" if choice.token_ids[-1] == 1 else "length")
    again = ask(server.base_url, lambda client: client.complete(REQUEST))
    assert again.choices == completion.choices


def test_the_canary_gives_the_models_own_logprobs(server: Server, published: Path) -> None:
    sequences = [[5, 6, 7, 3, 7, 6, 5, 1], [9, 3, 9, 1], [4]]
    for step in (1, 0):
        loaded = load(server, published / f"step_{step}", step)
        torch.manual_seed(step)
        module = tiny_model().build(pretrained=False)
        scores = ask(server.base_url, lambda client: client.logprobs(sequences))
        assert scores.weights_ids == {loaded.weights_id}
        for sequence, values in zip(sequences, scores.logprobs, strict=True):
            tokens = torch.tensor([sequence])
            own = module(tokens, torch.arange(len(sequence))[None]).log_softmax(-1)
            own = own[0, :-1].gather(-1, tokens[0, 1:, None])[:, 0]
            assert values == pytest.approx(own.tolist(), abs=1e-5)


def test_a_load_is_what_the_server_says_is_loaded(server: Server, published: Path) -> None:
    digests = set()
    for version, step in ((3, 0), (4, 1)):
        answer = load(server, published / f"step_{step}", version)
        loaded = ask(server.base_url, lambda client: client.loaded())
        assert loaded == answer
        assert (loaded.version, loaded.directory) == (version, str(published / f"step_{step}"))
        digests.add(loaded.digest)
    assert len(digests) == 2


def test_weights_that_cannot_be_loaded_are_the_wrong_policy(server: Server, tmp_path: Path) -> None:
    with pytest.raises(WrongPolicy, match=r"load of policy 5 .*allowed_dirs"):
        load(server, tmp_path, 5)


def test_a_request_that_cannot_be_served_is_a_data_error(server: Server) -> None:
    request = GenerationRequest([[4] * 200], [0], 1, Sampling(8))
    with pytest.raises(DataError, match="maximum length of 128"):
        ask(server.base_url, lambda client: client.complete(request))


@pytest.mark.parametrize("key", [None, "wrong"])
def test_a_refused_key_says_where_the_key_comes_from(key: str | None, server: Server) -> None:
    with pytest.raises(ServerUnreachable, match="api_key_env"):
        ask(server.base_url, lambda client: client.loaded(), key=key)


@contextmanager
def answering(status: int, body: bytes, **headers: str) -> Iterator[str]:
    """The address of a program that answers everything in the same way."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.rfile.read(int(self.headers.get("Content-Length", 0)))
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name.replace("_", "-"), value)
            self.end_headers()
            self.wfile.write(body)

        do_POST = do_GET

        def log_message(self, *_: object) -> None: ...

    with http.server.HTTPServer(("127.0.0.1", 0), Handler) as program:
        threading.Thread(target=program.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{program.server_port}"
        program.shutdown()


def test_another_program_on_the_port_is_told_apart() -> None:
    with (
        answering(200, b"<html>Welcome</html>") as url,
        pytest.raises(ServerUnreachable, match="Another program may be using the port"),
    ):
        ask(url, lambda client: client.loaded())


@pytest.mark.parametrize(
    ("status", "code", "kind"),
    [
        (500, None, RequestFailed),
        (500, "engine_died", RequestFailed),
        (503, None, RequestFailed),
        (503, "weights_unknown", WrongPolicy),
    ],
)
def test_a_failure_of_the_server_is_not_taken_for_wrong_weights(
    status: int, code: str | None, kind: type[Exception]
) -> None:
    failure = {"message": "no", "type": "server_error", "code": code}
    with answering(status, json.dumps({"error": failure}).encode()) as url:
        with pytest.raises(kind):
            ask(url, lambda client: client.complete(REQUEST))
        with pytest.raises(ServerLost):
            ask(url, lambda client: client.check_health())


def test_a_busy_server_is_never_asked_again_at_once() -> None:
    failure = b'{"error": {"message": "full", "type": "rate_limit_error"}}'
    with answering(429, failure, Retry_After="0") as url, pytest.raises(ServerBusy) as caught:
        ask(url, lambda client: client.complete(REQUEST))
    assert caught.value.retry_after >= 0.1
