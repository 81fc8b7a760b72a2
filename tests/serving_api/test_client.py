"""The client: what it returns of a server's responses, and the errors of everything else."""

from __future__ import annotations

import http.server
import json
import math
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.support.inference_server import KEY, Server
from tests.support.tiny_model import logprobs_of, tiny_model
from torchrl_ckpt.plugin_api.engines import GenerationRequest, Sampling
from torchrl_ckpt.plugin_api.errors import DataError, ServerUnreachable, WrongPolicy
from torchrl_ckpt.serving_api.client import InferenceClient, RequestFailed, ServerBusy, ServerLost

REQUEST = GenerationRequest(
    [[5, 6, 7, 3], [9, 3]], [11, 2**64 - 1], 3, Sampling(8, stop_token_ids=(1,))
)


def open_client(base_url: str, *, key: str | None = KEY) -> InferenceClient:
    return InferenceClient(base_url, key=key, timeout=60)


async def test_a_completion_is_the_engines_with_the_weights_that_made_it(
    server: Server, published: Path
) -> None:
    async with open_client(server.base_url) as client:
        loaded = await client.load_weights(published / "step_0", 40)
        completion = await client.complete(REQUEST)
        again = await client.complete(REQUEST)
    assert (loaded.version, completion.weights_ids) == (40, {loaded.weights_id})
    assert [choice.index for choice in completion.choices] == list(range(6))
    for choice in completion.choices:
        assert choice.token_ids is not None
        assert 1 <= len(choice.token_ids) == len(choice.token_logprobs) <= 8
        assert choice.finish_reason == ("stop" if choice.token_ids[-1] == 1 else "length")
    assert again.choices == completion.choices


async def test_the_canary_gives_the_models_own_logprobs(server: Server, published: Path) -> None:
    sequences = [[5, 6, 7, 3, 7, 6, 5, 1], [9, 3, 9, 1], [4]]
    async with open_client(server.base_url) as client:
        for step in (1, 0):
            loaded = await client.load_weights(published / f"step_{step}", step)
            scores = await client.logprobs(sequences)
            assert scores.weights_ids == {loaded.weights_id}
            torch.manual_seed(step)
            module = tiny_model().build(pretrained=False)
            for sequence, values in zip(sequences, scores.logprobs, strict=True):
                assert values == pytest.approx(logprobs_of(module, sequence), abs=1e-5)


async def test_the_server_reports_the_weights_that_were_loaded(
    server: Server, published: Path
) -> None:
    digests = set()
    async with open_client(server.base_url) as client:
        for version, step in ((3, 0), (4, 1)):
            directory = published / f"step_{step}"
            loaded = await client.load_weights(directory, version)
            assert await client.loaded() == loaded
            assert (loaded.version, loaded.directory) == (version, str(directory))
            digests.add(loaded.digest)
    assert len(digests) == 2


async def test_weights_that_cannot_be_loaded_are_the_wrong_policy(
    server: Server, tmp_path: Path
) -> None:
    async with open_client(server.base_url) as client:
        with pytest.raises(WrongPolicy, match=r"the load of policy 5 .* failed: .*allowed_dirs"):
            await client.load_weights(tmp_path, 5)


async def test_a_request_that_cannot_be_served_is_a_data_error(server: Server) -> None:
    request = GenerationRequest([[4] * 200], [0], 1, Sampling(8))
    async with open_client(server.base_url) as client:
        with pytest.raises(DataError, match="maximum length of 128"):
            await client.complete(request)


@pytest.mark.parametrize("key", [None, "wrong"])
async def test_a_refused_key_says_where_the_key_comes_from(key: str | None, server: Server) -> None:
    async with open_client(server.base_url, key=key) as client:
        with pytest.raises(ServerUnreachable, match="api_key_env"):
            await client.loaded()


@contextmanager
def responding(status: int, body: bytes, **headers: str) -> Iterator[str]:
    """Run a program that gives every request the same response; yield its address."""

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


def choice(index: int, **changes: Any) -> dict[str, Any]:
    """A good choice of two tokens, with `changes`."""
    logprobs = {"tokens": ["a", "b"], "token_logprobs": [-0.5, -1.0], "text_offset": [0, 1]}
    policy = [{"version": 1, "weights_id": "w", "num_tokens": 2}]
    good = {
        "index": index,
        "text": "ab",
        "logprobs": logprobs,
        "finish_reason": "length",
        "token_ids": [4, 5],
        "prompt_token_ids": None,
        "policy": policy,
    }
    return good | changes


GOOD = [choice(index) for index in range(6)]
NO_LOGPROBS = [math.nan, math.inf, -math.inf, 0.5]


def logprobs_with(value: float) -> dict[str, Any]:
    return {"tokens": ["a", "b"], "token_logprobs": [-0.5, value], "text_offset": [0, 1]}


def long_choice(index: int, length: int) -> dict[str, Any]:
    return choice(
        index,
        token_ids=[4] * length,
        logprobs={
            "tokens": ["a"] * length,
            "token_logprobs": [-0.5] * length,
            "text_offset": list(range(length)),
        },
        policy=[{"version": 1, "weights_id": "w", "num_tokens": length}],
    )


NULL_LOGPROB = {"tokens": ["a", "b"], "token_logprobs": [-0.5, None], "text_offset": [0, 1]}


@pytest.mark.parametrize(
    "choices",
    [
        GOOD[:5],
        [*GOOD, choice(6)],
        [*GOOD[:4], GOOD[5], GOOD[4]],
        [*GOOD[:5], choice(5, token_ids=[4])],
        [*GOOD[:5], choice(5, token_ids=None)],
        [*GOOD[:5], choice(5, logprobs=None)],
        [*GOOD[:5], choice(5, logprobs=NULL_LOGPROB)],
        [*GOOD[:5], choice(5, policy=[])],
        *[[*GOOD[:5], choice(5, logprobs=logprobs_with(value))] for value in NO_LOGPROBS],
        [*GOOD[:5], choice(5, token_ids=[4, -5])],
        [*GOOD[:5], choice(5, token_ids=[4, 99_999_999])],
        [*GOOD[:5], long_choice(5, 9)],
    ],
    ids=[
        *("too few", "too many", "wrong order", "lost token", "no token ids", "no logprobs"),
        *("a logprob is null", "no policy spans"),
        *(f"a logprob is {value}" for value in NO_LOGPROBS),
        *("a negative token id", "a token id that the vocabulary lacks", "too many tokens"),
    ],
)
async def test_choices_that_do_not_match_the_request_are_an_invalid_response(
    choices: list[dict[str, Any]],
) -> None:
    usage = {"prompt_tokens": 6, "completion_tokens": 12, "total_tokens": 18}
    body = {"id": "x", "created": 0, "model": "m", "usage": usage}
    with responding(200, json.dumps(body | {"choices": GOOD}).encode()) as url:
        async with open_client(url) as client:
            assert (await client.complete(REQUEST)).weights_ids == {"w"}
    with responding(200, json.dumps(body | {"choices": choices}).encode()) as url:
        async with open_client(url) as client:
            client.vocabulary = 30
            with pytest.raises(ServerUnreachable, match="See the server's log"):
                await client.complete(REQUEST)


async def test_the_error_for_another_program_on_the_port_says_so() -> None:
    with responding(200, b"<html>Welcome</html>") as url:
        async with open_client(url) as client:
            with pytest.raises(ServerUnreachable, match="Another program may be using the port"):
                await client.loaded()


@pytest.mark.parametrize(
    ("status", "code", "kind"),
    [
        (500, None, RequestFailed),
        (500, "engine_died", RequestFailed),
        (503, None, RequestFailed),
        (503, "weights_unknown", WrongPolicy),
        (500, "not_finite", WrongPolicy),
    ],
)
async def test_only_unknown_weights_and_numbers_are_the_wrong_policy(
    status: int, code: str | None, kind: type[Exception]
) -> None:
    error = {"message": "no", "type": "server_error", "code": code}
    with responding(status, json.dumps({"error": error}).encode()) as url:
        async with open_client(url) as client:
            with pytest.raises(kind):
                await client.complete(REQUEST)
            with pytest.raises(ServerLost):
                await client.check_health()


async def test_a_server_that_does_not_answer_a_health_check_is_lost() -> None:
    with http.server.HTTPServer(("127.0.0.1", 0), http.server.BaseHTTPRequestHandler) as silent:
        client = InferenceClient(
            f"http://127.0.0.1:{silent.server_port}", key=None, timeout=60, health_timeout=0.2
        )
        async with client:
            with pytest.raises(ServerLost, match="did not answer the health check"):
                await client.check_health()


async def test_a_busy_server_is_never_retried_at_once() -> None:
    error = b'{"error": {"message": "full", "type": "rate_limit_error"}}'
    with responding(429, error, Retry_After="0") as url:
        async with open_client(url) as client:
            with pytest.raises(ServerBusy) as caught:
                await client.complete(REQUEST)
    assert caught.value.retry_after >= 0.1
