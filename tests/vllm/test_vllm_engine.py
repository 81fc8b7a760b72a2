"""The engine `vllm`, behind the server as it is used: what it computes is what the policy says."""

from __future__ import annotations

import asyncio
import functools
import shutil
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, TypeVar

import httpx
import pytest
from safetensors.torch import load_file, save_file

from tests.support.inference_server import AUTHORIZED, wait_until_up
from tests.vllm.conftest import CANARY, Published, VllmServer
from torchrl_ckpt.orchestrator.attestation import attest
from torchrl_ckpt.plugin_api.engines import GenerationRequest, Sampling
from torchrl_ckpt.plugin_api.errors import DataError, WrongPolicy
from torchrl_ckpt.serving_api.client import InferenceClient
from torchrl_ckpt.serving_api.protocol import Choice

T = TypeVar("T")

PROMPTS = [[5, 6, 7, 3], [9, 3], [20, 21, 22, 23, 24, 25, 26, 3], [8, 8, 3]]
SEEDS = [11, 2**64 - 1, 13, 12]
SAMPLING = Sampling(max_tokens=12, stop_token_ids=(1, 7, 8))

FLOAT32_BOUND = 1e-5


def ask(server: VllmServer, question: Callable[[InferenceClient], Awaitable[T]]) -> T:
    wait_until_up(server, seconds=300)

    async def connected() -> T:
        async with server.client() as client:
            return await question(client)

    return asyncio.run(connected())


def complete(server: VllmServer, request: GenerationRequest) -> list[list[Choice]]:
    """`[prompt][sample]`"""
    choices = ask(server, lambda client: client.complete(request)).choices
    size = request.num_samples
    return [choices[start : start + size] for start in range(0, len(choices), size)]


def generate(server: VllmServer, order: list[int], **sampling: Any) -> list[list[Choice]]:
    how = Sampling(**{**vars(SAMPLING), **sampling})
    request = GenerationRequest([PROMPTS[i] for i in order], [SEEDS[i] for i in order], 4, how)
    return complete(server, request)


def test_every_reload_is_attested_with_tied_embeddings(server: VllmServer, tied: Published) -> None:
    async def load(client: InferenceClient, version: int) -> float:
        directory = tied.directory(version)
        attested = await attest(client, tied.policy(version), directory, tolerance=None)
        return attested.max_difference

    for version in (0, 1, 0):
        assert ask(server, functools.partial(load, version=version)) < FLOAT32_BOUND


def test_logprobs_of_a_sample_are_those_of_the_sequence(server: VllmServer) -> None:
    samples = generate(server, [0, 1, 2, 3])
    pairs = [(p, s) for p, group in zip(PROMPTS, samples, strict=True) for s in group]
    sequences = [[*prompt, *sample.token_ids] for prompt, sample in pairs]
    scores = ask(server, lambda client: client.logprobs(sequences)).logprobs
    for (_, sample), score in zip(pairs, scores, strict=True):
        tail = score[-len(sample.token_logprobs) :]
        assert tail == pytest.approx(sample.token_logprobs, abs=FLOAT32_BOUND)


def test_a_sequence_as_long_as_the_model_is_scored(server: VllmServer, tied: Published) -> None:
    ask(server, lambda client: client.load_weights(tied.directory(0), 0))
    sequence = [2 + i % 26 for i in range(128)]
    [score] = ask(server, lambda client: client.logprobs([sequence])).logprobs
    assert score == pytest.approx(tied.logprobs(0, sequence), abs=FLOAT32_BOUND)


def test_the_logprob_is_that_of_the_distribution_drawn_from(server: VllmServer) -> None:
    [[greedy, *_]] = generate(server, [0], temperature=0.0)
    [only_one] = generate(server, [0], top_k=1)
    assert [sample.token_ids for sample in only_one] == [greedy.token_ids] * 4
    assert all(value == 0 for sample in only_one for value in sample.token_logprobs)
    assert all(value < 0 for value in greedy.logprobs)


def test_a_sample_depends_on_its_prompts_seed_and_its_number_alone(server: VllmServer) -> None:
    straight = generate(server, [0, 1, 2, 3])
    for place, samples in zip([3, 0], generate(server, [3, 0]), strict=True):
        for sample, same in zip(samples, straight[place], strict=True):
            assert sample.token_ids == same.token_ids
            assert sample.token_logprobs == pytest.approx(same.logprobs, abs=FLOAT32_BOUND)
    assert len({tuple(sample.token_ids) for group in straight for sample in group}) > 12


def test_a_completion_ends_with_its_stop_token_or_at_its_length(server: VllmServer) -> None:
    samples = [sample for group in generate(server, [0, 1, 2, 3]) for sample in group]
    assert {sample.finish_reason for sample in samples} == {"stop", "length"}
    for sample in samples:
        ends = [token in SAMPLING.stop_token_ids for token in sample.token_ids]
        assert not any(ends[:-1])
        assert ends[-1] == (sample.finish_reason == "stop")
        assert sample.finish_reason == "stop" or len(ends) == SAMPLING.max_tokens


def test_more_prompt_tokens_than_one_step_takes_are_served(server: VllmServer) -> None:
    # vLLM reads 2,048 of them at a time, and on CPU cannot divide a seeded prompt.
    prompts = [[2 + (i + j) % 26 for j in range(100)] for i in range(64)]
    request = GenerationRequest(prompts, list(range(64)), 1, Sampling(max_tokens=4))
    samples = complete(server, request)
    assert all(sample.token_ids for [sample] in samples)


@pytest.mark.parametrize(
    ("prompt", "max_tokens", "said"),
    [([5, 30], 4, r"not in 0\.\.29"), ([5] * 100, 40, "maximum length of 128")],
)
def test_a_prompt_that_the_model_cannot_take_is_refused(
    server: VllmServer, prompt: list[int], max_tokens: int, said: str
) -> None:
    request = GenerationRequest([prompt], [1], 1, Sampling(max_tokens=max_tokens))
    with pytest.raises(DataError, match=said):
        ask(server, lambda client: client.complete(request))


def _of_another_shape(directory: Path) -> None:
    tensors = load_file(directory / "model.safetensors")
    name = "model.embed_tokens.weight"
    save_file(tensors | {name: tensors[name][:-1].clone()}, directory / "model.safetensors")


def _of_another_model(directory: Path) -> None:
    config = (directory / "config.json").read_text()
    (directory / "config.json").write_text(
        config.replace('"rms_norm_eps": 1e-06', '"rms_norm_eps": 1e-05')
    )


def _cut_short(directory: Path) -> None:
    whole = (directory / "model.safetensors").read_bytes()
    (directory / "model.safetensors").write_bytes(whole[:-1000])


@pytest.mark.parametrize("spoil", [_of_another_shape, _of_another_model, _cut_short])
def test_weights_that_do_not_fit_are_refused_and_change_nothing(
    server: VllmServer, tied: Published, spoil: Callable[[Path], None]
) -> None:
    bad = tied.root / "bad"
    shutil.rmtree(bad, ignore_errors=True)
    shutil.copytree(tied.directory(1), bad)
    spoil(bad)
    before = ask(server, lambda client: client.load_weights(tied.directory(0), 0))
    with pytest.raises(WrongPolicy, match="the weights at"):
        ask(server, lambda client: client.load_weights(bad, 1))
    assert ask(server, lambda client: client.loaded()).weights_id == before.weights_id
    scores = ask(server, lambda client: client.logprobs(CANARY)).logprobs
    for sequence, score in zip(CANARY, scores, strict=True):
        assert score == pytest.approx(tied.logprobs(0, sequence), abs=FLOAT32_BOUND)


def test_every_token_in_flight_is_stamped_with_the_weights_that_drew_it(
    server: VllmServer, tied: Published
) -> None:
    prompts = [[5 + i, 3] for i in range(16)]
    body = {"prompt": prompts, "n": 4, "max_tokens": 100, "logprobs": 1, "return_token_ids": True}

    async def over_loads() -> Any:
        async with (
            httpx.AsyncClient(
                base_url=server.base_url, headers=AUTHORIZED, timeout=300, trust_env=False
            ) as http,
            server.client() as client,
        ):
            request = asyncio.create_task(http.post("/v1/completions", json=body))
            # Not for as long as it lasts: each load has vLLM read the tokens so far again.
            for version in (0, 1, 0, 1):
                await asyncio.sleep(0.2)
                await client.load_weights(tied.directory(version), version)
            return (await request).json()

    choices = asyncio.run(over_loads())["choices"]
    assert len(choices) == 64
    assert max(len(choice["policy"]) for choice in choices) > 2
    for choice in choices:
        assert sum(span["num_tokens"] for span in choice["policy"]) == len(choice["token_ids"])
        prompt, start = choice["prompt_token_ids"], 0
        sequence = [*prompt, *choice["token_ids"]]
        for span in choice["policy"]:
            if span["version"] is not None:
                ours = tied.logprobs(span["version"], sequence)[len(prompt) - 1 :]
                drawn = slice(start, start + span["num_tokens"])
                theirs = choice["logprobs"]["token_logprobs"][drawn]
                assert theirs == pytest.approx(ours[drawn], abs=FLOAT32_BOUND)
            start += span["num_tokens"]
