"""The server over HTTP: OpenAI's form, its errors, and its start and end."""

from __future__ import annotations

import asyncio
import re
import signal
from pathlib import Path
from typing import Any

import httpx
import pytest
from torchrl_ckpt_transformers.transformers_engine import (
    TransformersEngine,
    TransformersEngineConfig,
)

from tests.support.inference_server import (
    API_KEY,
    AUTHORIZED,
    KEY,
    failure,
    running_server,
    wait_until_up,
)
from tests.support.tiny_model import tiny_model
from torchrl_ckpt.config.inference import InferenceConfig
from torchrl_ckpt.inference.server import serve
from torchrl_ckpt.plugin_api.errors import AddressInUse, RecipeError
from torchrl_ckpt.plugin_api.models import Model
from torchrl_ckpt.serving_api.keys import find_key
from torchrl_ckpt.serving_api.listener import open_listener


def complete(http: httpx.Client, **request: Any) -> dict[str, Any]:
    answer = http.post("/v1/completions", json=request)
    assert answer.status_code == 200, answer.text
    return answer.json()


def test_a_completion_has_openais_form(http: httpx.Client) -> None:
    answer = complete(http, model="transformers", prompt="hello>", n=2, logprobs=1, max_tokens=5)
    assert answer["object"] == "text_completion"
    assert answer["usage"]["prompt_tokens"] == 6
    assert [choice["index"] for choice in answer["choices"]] == [0, 1]
    for choice in answer["choices"]:
        logprobs = choice["logprobs"]
        assert re.sub("<[a-z]+>", "", "".join(logprobs["tokens"])) == choice["text"]
        assert len(logprobs["token_logprobs"]) == len(logprobs["tokens"]) <= 5
        assert logprobs["text_offset"][0] == 0
        assert choice["finish_reason"] in {"stop", "length"}


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("ab>", [[4, 5, 3]]),
        (["ab>", "c>"], [[4, 5, 3], [6, 3]]),
        ([4, 5, 3], [[4, 5, 3]]),
        ([[4, 5, 3], [6, 3]], [[4, 5, 3], [6, 3]]),
    ],
)
def test_a_prompt_may_have_any_of_the_four_forms(
    prompt: Any, expected: list[list[int]], http: httpx.Client
) -> None:
    answer = complete(http, prompt=prompt, return_token_ids=True)
    assert [choice["prompt_token_ids"] for choice in answer["choices"]] == expected
    assert all(choice["token_ids"] for choice in answer["choices"])


def test_the_same_seed_gives_the_same_completions(http: httpx.Client) -> None:
    first, second = (complete(http, prompt="abc>", n=4, seed=5)["choices"] for _ in range(2))
    assert first == second
    assert complete(http, prompt="abc>", n=4, seed=6)["choices"] != first


def test_completions_depend_on_the_prompts_seed_not_its_position(http: httpx.Client) -> None:
    forward = complete(http, prompt=["abc>", "xy>"], prompt_seeds=[1, 2**64 - 1], n=2)
    backward = complete(http, prompt=["xy>", "abc>"], prompt_seeds=[2**64 - 1, 1], n=2)
    texts = [choice["text"] for choice in forward["choices"]]
    assert [choice["text"] for choice in backward["choices"]] == texts[2:] + texts[:2]


def test_a_chat_completion_has_openais_form(http: httpx.Client) -> None:
    answer = http.post(
        "/v1/chat/completions",
        json={
            "model": "transformers",
            "messages": [{"role": "user", "content": "hello"}],
            "max_tokens": 4,
            "logprobs": True,
            "return_token_ids": True,
        },
    ).json()
    [choice] = answer["choices"]
    assert answer["object"] == "chat.completion"
    assert choice["message"]["role"] == "assistant"
    assert choice["prompt_token_ids"] == [11, 8, 15, 15, 18, 3]
    assert len(choice["logprobs"]["content"]) == len(choice["token_ids"]) <= 4


def test_health_and_models_answer_without_a_key(http: httpx.Client) -> None:
    assert http.get("/health").json() == {"status": "ok"}
    assert [model["id"] for model in http.get("/v1/models").json()["data"]] == ["transformers"]


@pytest.mark.parametrize(
    ("change", "param", "message"),
    [
        ({"prompt": []}, None, "empty"),
        ({"prompt": ""}, None, "empty"),
        ({"prompt": [[4, 30]]}, None, "not in 0..29"),
        ({"prompt": [[4, -1]]}, "prompt", "greater than or equal to 0"),
        ({"prompt": {"a": 1}}, "prompt", ""),
        ({"max_tokens": 126}, None, "maximum length of 128"),
        ({"max_tokens": -1}, "max_tokens", "greater than or equal to 0"),
        ({"max_tokens": 0}, None, "together only"),
        ({"n": 0}, "n", "greater than or equal to 1"),
        ({"temperature": -0.1}, "temperature", ""),
        ({"temperature": 1e-30}, None, "0 or at least 0.0001"),
        ({"stop_token_ids": [2**80]}, "stop_token_ids", "less than"),
        ({"temperature": "warm"}, "temperature", "valid number"),
        ({"top_p": 0}, "top_p", "greater than or equal to 0.000001"),
        ({"logprobs": 5}, "logprobs", "less than or equal to 1"),
        ({"stream": "yes, please"}, "stream", "valid boolean"),
        ({"stream_options": {}}, None, "with `stream` only"),
        ({"stream": True, "echo": True, "max_tokens": 0}, None, "cannot be streamed"),
        ({"best_of": 2}, None, "`best_of` other than `n`"),
        ({"presence_penalty": 0.5}, "presence_penalty", "equal to 0"),
        ({"frequency_penalty": -1}, "frequency_penalty", "equal to 0"),
        ({"logit_bias": {"5": 1}}, "logit_bias", "at most 0 items"),
        ({"stop": ""}, "stop", "at least 1 character"),
        ({"suffix": "x"}, "suffix", "not supported"),
        ({"seed": 2**64}, "seed", "less than 18446744073709551616"),
        ({"prompt_seeds": [1, 2]}, None, "one seed for each prompt"),
        ({"prompt_seeds": [2**64]}, "prompt_seeds", "less than 18446744073709551616"),
    ],
)
def test_a_bad_request_gets_an_error_that_names_the_parameter(
    change: dict[str, Any], param: str | None, message: str, http: httpx.Client
) -> None:
    error = failure(http.post("/v1/completions", json={"prompt": "ab>"} | change), 400)
    assert error["type"] == "invalid_request_error"
    assert error["param"] == param
    assert message in error["message"]


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"null",
        b"[]",
        b"\xff\xfe",
        b"[" * 100_000,
        b'{"prompt": "\\ud800"}',
        b'{"prompt": "ab>", "\\ud800": 1}',
        b'{"prompt": "ab>", "temperature": NaN}',
        b'{"prompt": "ab>", "temperature": 1e999}',
        b'{"prompt": [99999999999999999999]}',
        b'{"prompt": "ab>", "max_tokens": 99999999999999999999}',
    ],
)
def test_a_malformed_body_is_a_bad_request(body: bytes, http: httpx.Client) -> None:
    headers = {"Content-Type": "application/json"} | AUTHORIZED
    for path in ("/v1/completions", "/v1/chat/completions", "/weights"):
        failure(http.post(path, content=body, headers=headers), 400)


def test_every_error_has_openais_form(http: httpx.Client) -> None:
    failure(
        http.post("/v1/completions", content=b"{", headers={"Content-Type": "application/json"}),
        400,
    )
    failure(http.get("/v1/nothing"), 404)
    failure(http.delete("/weights", headers=AUTHORIZED), 405)
    error = failure(http.post("/v1/completions", json={"prompt": "a", "model": "gpt-9"}), 404)
    assert error["param"] == "model"


def test_a_chat_that_the_template_refuses_is_a_bad_request(http: httpx.Client) -> None:
    failure(http.post("/v1/chat/completions", json={"messages": []}), 400)
    failure(http.post("/v1/chat/completions", json={"messages": [{"role": "user"}]}), 400)


def test_missing_or_unusable_weights_leave_the_earlier_ones(
    http: httpx.Client, published: Path
) -> None:
    good = {"directory": str(published / "step_1"), "version": 7}
    assert http.post("/weights", json=good, headers=AUTHORIZED).json()["version"] == 7
    loaded = http.get("/weights", headers=AUTHORIZED).json()
    (published / "empty").mkdir()
    absent = {"directory": str(published / "absent"), "version": 8}
    empty = {"directory": str(published / "empty"), "version": 8}
    failure(http.post("/weights", json=absent, headers=AUTHORIZED), 404)
    error = failure(http.post("/weights", json=empty, headers=AUTHORIZED), 400)
    assert error["code"] == "unusable_weights"
    assert http.get("/weights", headers=AUTHORIZED).json() == loaded
    [span] = complete(http, prompt="ab>", max_tokens=5)["choices"][0]["policy"]
    assert (span["version"], span["weights_id"]) == (7, loaded["weights_id"])


def test_a_server_started_by_hand_leaves_its_key_until_it_stops(
    published: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    monkeypatch.delenv(API_KEY, raising=False)
    with running_server(published, key=None) as server:
        wait_until_up(server)
        key = find_key(server.base_url, API_KEY)
        assert key is not None
        [file] = (tmp_path / "torchrl-ckpt" / "keys").iterdir()
        assert file.stat().st_mode & 0o777 == 0o600
        assert file.parent.stat().st_mode & 0o777 == 0o700
        answer = httpx.get(f"{server.base_url}/weights", headers={"Authorization": f"Bearer {key}"})
        assert answer.json()["version"] is None
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(timeout=30) == 0
    assert not file.exists()


class InterruptedEngine(TransformersEngine):
    """Receives SIGINT while it starts."""

    def start(self, model: Model, *, max_length: int | None, threads: int) -> None:
        signal.raise_signal(signal.SIGINT)


def test_a_server_that_is_stopped_before_it_is_up_leaves_nothing(published: Path) -> None:
    before = signal.getsignal(signal.SIGINT)
    config = InferenceConfig(port=0, output_dir=published, model={"type": "transformers"})
    engine = InterruptedEngine(TransformersEngineConfig())
    serve(config, model=tiny_model(), engine=engine, key=KEY, allowed_dirs=[published])
    assert signal.getsignal(signal.SIGINT) == before
    with pytest.raises(RuntimeError, match="after shutdown"):
        asyncio.run(engine.weights_digest())


def test_a_public_address_needs_a_key_from_the_environment(published: Path) -> None:
    config = InferenceConfig(host="0.0.0.0", output_dir=published, model={"type": "transformers"})
    engine = TransformersEngine(TransformersEngineConfig())
    with pytest.raises(RecipeError, match=r"0\.0\.0\.0.*TORCHRL_CKPT_API_KEY"):
        serve(config, model=tiny_model(), engine=engine, key=None, allowed_dirs=[published])


def test_the_error_for_a_taken_port_names_its_process() -> None:
    with open_listener("127.0.0.1", 0) as first:
        port = first.getsockname()[1]
        with pytest.raises(AddressInUse, match=f"127.0.0.1:{port} is taken by process"):
            open_listener("127.0.0.1", port)
