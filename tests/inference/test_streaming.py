"""Streamed responses equal whole ones."""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest

from tests.support.inference_server import failure


def events(http: httpx.Client, path: str, **request: Any) -> list[dict[str, Any]]:
    """Return the events of a stream without the final `[DONE]`."""
    answer = http.post(path, json=request | {"stream": True})
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"].startswith("text/event-stream")
    *lines, done, end = answer.text.split("\n\n")
    assert (done, end) == ("data: [DONE]", "")
    return [json.loads(line.removeprefix("data: ")) for line in lines]


def chunks_of(chunks: list[dict[str, Any]], index: int) -> list[dict[str, Any]]:
    """Return what a stream contains of one choice."""
    found = [choice for chunk in chunks for choice in chunk["choices"] if choice["index"] == index]
    assert [choice["finish_reason"] for choice in found[:-1]] == [None] * (len(found) - 1)
    return found


def joined(parts: list[list[Any]]) -> list[Any]:
    return [item for part in parts for item in part]


@pytest.mark.parametrize("stop", [[], ["e", "st"]])
def test_the_chunks_of_a_completion_make_up_the_whole_one(
    stop: list[str], http: httpx.Client
) -> None:
    request = {
        "prompt": ["abc>", "hello>"],
        "n": 3,
        "seed": 5,
        "max_tokens": 30,
        "logprobs": 1,
        "return_token_ids": True,
        "stop": stop,
    }
    whole = http.post("/v1/completions", json=request).json()
    options = {"include_usage": True}
    *chunks, last = events(http, "/v1/completions", **request, stream_options=options)
    assert (last["choices"], last["usage"]) == ([], whole["usage"])
    assert {chunk["usage"] for chunk in chunks} == {None}
    assert {chunk["object"] for chunk in chunks} == {"text_completion"}
    assert len({chunk["id"] for chunk in [*chunks, last]}) == 1
    assert len(chunks) > len(whole["choices"])
    for choice in whole["choices"]:
        parts = chunks_of(chunks, choice["index"])
        assert "".join(part["text"] for part in parts) == choice["text"]
        assert joined([part["token_ids"] for part in parts]) == choice["token_ids"]
        assert parts[0]["prompt_token_ids"] == choice["prompt_token_ids"]
        assert parts[-1]["finish_reason"] == choice["finish_reason"]
        for name in ("tokens", "token_logprobs", "text_offset"):
            streamed = joined([part["logprobs"][name] for part in parts])
            assert streamed == choice["logprobs"][name], name
        spans = joined([part["policy"] for part in parts])
        assert {span["weights_id"] for span in spans} == {choice["policy"][0]["weights_id"]}
        assert sum(span["num_tokens"] for span in spans) == len(choice["token_ids"])
        assert choice["policy"][0]["num_tokens"] == len(choice["token_ids"])
        assert not any(text in choice["text"] for text in stop)
    if stop:
        # The same tokens are drawn: a stop sequence changes nothing before it.
        free = http.post("/v1/completions", json=request | {"stop": []}).json()
        for cut, choice in zip(whole["choices"], free["choices"], strict=True):
            assert choice["text"].startswith(cut["text"])
            rest = choice["text"].removeprefix(cut["text"])
            assert rest == "" or rest.startswith(tuple(stop))


def test_the_chunks_of_a_chat_make_up_the_whole_one(http: httpx.Client) -> None:
    request = {
        "messages": [{"role": "user", "content": "hello"}],
        "n": 2,
        "seed": 6,
        "max_completion_tokens": 20,
        "logprobs": True,
        "top_logprobs": 0,
        "return_token_ids": True,
    }
    whole = http.post("/v1/chat/completions", json=request).json()
    chunks = events(http, "/v1/chat/completions", **request)
    assert {chunk["object"] for chunk in chunks} == {"chat.completion.chunk"}
    for choice in whole["choices"]:
        parts = chunks_of(chunks, choice["index"])
        assert "".join(p["delta"]["content"] for p in parts) == choice["message"]["content"]
        roles = [part["delta"]["role"] for part in parts]
        assert roles == ["assistant", *[None] * (len(parts) - 1)]
        content = joined([part["logprobs"]["content"] for part in parts[1:]])
        assert content == choice["logprobs"]["content"]
        assert joined([part["token_ids"] for part in parts]) == choice["token_ids"]
        assert parts[0]["prompt_token_ids"] == choice["prompt_token_ids"]
        assert parts[-1]["finish_reason"] == choice["finish_reason"]


def test_a_refused_stream_request_gets_a_response_with_its_status(
    http: httpx.Client,
) -> None:
    body = {"prompt": "ab>", "stream": True, "max_tokens": 500}
    assert "maximum length" in failure(http.post("/v1/completions", json=body), 400)["message"]
    chat = {"messages": [{"role": "user", "content": "a"}], "stream": True, "max_tokens": 500}
    failure(http.post("/v1/chat/completions", json=chat), 400)
    failure(http.post("/v1/completions", json=body | {"model": "gpt-9"}), 404)
