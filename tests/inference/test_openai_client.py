"""The `openai` package and `curl` work with the server unchanged."""

from __future__ import annotations

import asyncio
import json
import shutil
import subprocess
from typing import Any

import openai
import pytest

from tests.support.inference_server import Server

MESSAGES: Any = [{"role": "user", "content": "hello"}]
# Parameters that programs commonly send, whether they change anything or not.
COMMON: dict[str, Any] = {
    "temperature": 0.7,
    "top_p": 0.9,
    "n": 2,
    "seed": 1,
    "stop": ["\n\n", "zz"],
    "presence_penalty": 0,
    "frequency_penalty": 0.0,
    "logit_bias": {},
    "user": "me",
}


@pytest.fixture(autouse=True)
def _no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


@pytest.fixture(name="client")
def make_client(server: Server) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{server.base_url}/v1", api_key="any", max_retries=0)


def test_the_model_is_listed_and_another_is_not_found(client: openai.OpenAI) -> None:
    [model] = client.models.list().data
    assert client.models.retrieve(model.id) == model
    with pytest.raises(openai.NotFoundError, match="no model 'gpt/9' here, only 'transformers'"):
        client.models.retrieve("gpt/9")


def test_a_streamed_completion_equals_the_whole_one(client: openai.OpenAI) -> None:
    request = {"model": "transformers", "prompt": "hello>", "max_tokens": 20, "logprobs": 1}
    whole = client.completions.create(**request, **COMMON, best_of=2, extra_body={"top_k": 5})
    assert [choice.index for choice in whole.choices] == [0, 1]
    assert whole.choices[0].logprobs.token_logprobs
    assert whole.usage.prompt_tokens == 6
    texts, usage = ["", ""], None
    for chunk in client.completions.create(
        **request, **COMMON, extra_body={"top_k": 5}, stream=True,
        stream_options={"include_usage": True},
    ):  # fmt: skip
        usage = chunk.usage
        for choice in chunk.choices:
            texts[choice.index] += choice.text
    assert texts == [choice.text for choice in whole.choices]
    assert usage == whole.usage


def test_a_streamed_chat_equals_the_whole_one(client: openai.OpenAI) -> None:
    request = {
        **COMMON,
        "model": "transformers",
        "messages": MESSAGES,
        "max_completion_tokens": 110,
        # One of these letters appears with any weights: OpenAI's stream helper raises an error for
        # a completion that ends by its length.
        "stop": list("abcdefgh"),
        "logprobs": True,
        "top_logprobs": 0,
        "response_format": {"type": "text"},
        "tools": [],
    }
    whole = client.chat.completions.create(**request)
    streamed: list[str] = ["", ""]
    for chunk in client.chat.completions.create(**request, stream=True):
        for choice in chunk.choices:
            streamed[choice.index] += choice.delta.content or ""
    assert streamed == [choice.message.content for choice in whole.choices]
    request.pop("tools")
    with client.chat.completions.stream(**request) as stream:
        final = stream.get_final_completion()
    assert [c.message.content for c in final.choices] == streamed
    assert [c.finish_reason for c in final.choices] == [c.finish_reason for c in whole.choices]
    for streamed_choice, choice in zip(final.choices, whole.choices, strict=True):
        assert streamed_choice.logprobs.content == choice.logprobs.content


def test_a_message_in_parts_equals_the_plain_message(client: openai.OpenAI) -> None:
    parts: Any = [{"role": "user", "content": [{"type": "text", "text": t} for t in ("he", "llo")]}]
    plain, in_parts = (
        client.chat.completions.create(model="transformers", messages=messages, seed=3)
        for messages in (MESSAGES, parts)
    )
    assert plain.choices[0].message == in_parts.choices[0].message
    image: Any = [{"type": "image_url", "image_url": {"url": "data:,"}}]
    with pytest.raises(openai.BadRequestError, match="type `text` only"):
        client.chat.completions.create(
            model="transformers", messages=[{"role": "user", "content": image}]
        )


def test_the_package_shows_the_extensions(client: openai.OpenAI) -> None:
    answer = client.completions.create(
        model="transformers", prompt="hello>", seed=1, extra_body={"return_token_ids": True}
    )
    [choice] = answer.choices
    assert choice.prompt_token_ids == [11, 8, 15, 15, 18, 3]
    assert sum(span["num_tokens"] for span in choice.policy) == len(choice.token_ids)


async def test_the_async_client_gets_both_kinds_of_response_concurrently(server: Server) -> None:
    async with openai.AsyncOpenAI(base_url=f"{server.base_url}/v1", api_key="any") as client:
        request: Any = {"model": "transformers", "messages": MESSAGES, "seed": 2}
        whole, stream = await asyncio.gather(
            client.chat.completions.create(**request),
            client.chat.completions.create(**request, stream=True),
        )
        text = "".join([chunk.choices[0].delta.content or "" async for chunk in stream])
    assert text == whole.choices[0].message.content


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"presence_penalty": 1}, "presence_penalty"),
        ({"frequency_penalty": 0.1}, "frequency_penalty"),
        ({"logit_bias": {"5": 2}}, "logit_bias"),
        ({"top_logprobs": 3, "logprobs": True}, "top_logprobs"),
        ({"tools": [{"type": "function", "function": {"name": "f"}}]}, "tools"),
        ({"response_format": {"type": "json_object"}}, "response_format"),
        ({"modalities": ["audio"]}, "modalities"),
        ({"max_tokens": 5, "max_completion_tokens": 5}, "max_tokens"),
        ({"n": 0}, "n"),
    ],
)
def test_an_unsupported_parameter_is_a_bad_request_that_names_it(
    change: dict[str, Any], param: str, client: openai.OpenAI
) -> None:
    with pytest.raises(openai.BadRequestError) as refused:
        client.chat.completions.create(model="transformers", messages=MESSAGES, **change)
    assert refused.value.param == param
    assert refused.value.type == "invalid_request_error"


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
@pytest.mark.parametrize("path", ["completions", "chat/completions"])
def test_curl_gets_the_same_text_whole_and_streamed(path: str, server: Server) -> None:
    def curl(**more: Any) -> str:
        body = {"seed": 4} | more
        body |= {"messages": MESSAGES} if path.startswith("chat") else {"prompt": "hello>"}
        return subprocess.run(
            ["curl", "-sSfN", f"{server.base_url}/v1/{path}", "--json", json.dumps(body)],
            check=True, capture_output=True, text=True,
        ).stdout  # fmt: skip

    def text(choice: dict[str, Any]) -> str:
        turn = choice.get("message") or choice.get("delta") or {}
        return choice.get("text") or turn.get("content", "")

    [choice] = json.loads(curl())["choices"]
    *lines, done = curl(stream=True).split("\n\n")[:-1]
    assert done == "data: [DONE]"
    chunks = [json.loads(line.removeprefix("data: ")) for line in lines]
    assert "".join(text(chunk["choices"][0]) for chunk in chunks) == text(choice)
