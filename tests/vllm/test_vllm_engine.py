"""The engine `vllm` behind its server: it computes what the policy's module computes."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from safetensors.torch import load_file, save_file

from tests.support.inference_server import AUTHORIZED
from tests.support.vllm_server import CANARY, RandomPolicies, VllmServer
from torchrl_ckpt.orchestrator.attestation import attest
from torchrl_ckpt.plugin_api.engines import GenerationRequest, Sampling
from torchrl_ckpt.plugin_api.errors import DataError, WrongPolicy
from torchrl_ckpt.serving_api.protocol import Choice, Completion

PROMPTS = [[5, 6, 7, 3], [9, 3], [20, 21, 22, 23, 24, 25, 26, 3], [8, 8, 3]]
SEEDS = [11, 2**64 - 1, 13, 12]
SAMPLING = Sampling(max_tokens=12, stop_token_ids=(1, 7, 8))

FLOAT32_BOUND = 1e-5


async def complete(server: VllmServer, request: GenerationRequest) -> list[list[Choice]]:
    """Return the choices as `[prompt][sample]`."""
    async with server.client() as client:
        choices = (await client.complete(request)).choices
    size = request.num_samples
    return [choices[start : start + size] for start in range(0, len(choices), size)]


async def complete_prompts(
    server: VllmServer, numbers: list[int], **sampling: Any
) -> list[list[Choice]]:
    """Complete some of `PROMPTS`, four times each; `sampling` changes `SAMPLING`."""
    return await complete(
        server,
        GenerationRequest(
            [PROMPTS[i] for i in numbers],
            [SEEDS[i] for i in numbers],
            4,
            Sampling(**{**vars(SAMPLING), **sampling}),
        ),
    )


async def test_every_reload_is_attested_with_tied_embeddings(
    server: VllmServer, tied: RandomPolicies
) -> None:
    async with server.client() as client:
        for version in (0, 1, 0):
            policy, directory = tied.policy(version), tied.directory(version)
            attestation = await attest(client, policy, directory, tolerance=None)
            assert attestation.max_difference < FLOAT32_BOUND


async def test_logprobs_of_a_sample_are_those_of_the_sequence(server: VllmServer) -> None:
    groups = await complete_prompts(server, [0, 1, 2, 3])
    pairs = [(p, choice) for p, group in zip(PROMPTS, groups, strict=True) for choice in group]
    sequences = [[*prompt, *choice.token_ids] for prompt, choice in pairs]
    async with server.client() as client:
        scores = (await client.logprobs(sequences)).logprobs
    for (_, choice), score in zip(pairs, scores, strict=True):
        tail = score[-len(choice.token_logprobs) :]
        assert tail == pytest.approx(choice.token_logprobs, abs=FLOAT32_BOUND)


async def test_a_sequence_of_the_models_maximum_length_is_scored(
    server: VllmServer, tied: RandomPolicies
) -> None:
    sequence = [2 + i % 26 for i in range(128)]
    async with server.client() as client:
        await client.load_weights(tied.directory(0), 0)
        [score] = (await client.logprobs([sequence])).logprobs
    assert score == pytest.approx(tied.logprobs(0, sequence), abs=FLOAT32_BOUND)


async def test_the_logprob_is_that_of_the_distribution_drawn_from(server: VllmServer) -> None:
    [[greedy, *_]] = await complete_prompts(server, [0], temperature=0.0)
    [likeliest] = await complete_prompts(server, [0], top_k=1)
    assert [choice.token_ids for choice in likeliest] == [greedy.token_ids] * 4
    assert all(value == 0 for choice in likeliest for value in choice.token_logprobs)
    assert all(value < 0 for value in greedy.token_logprobs)


async def test_a_sample_depends_only_on_its_prompts_seed_and_its_number(server: VllmServer) -> None:
    in_order = await complete_prompts(server, [0, 1, 2, 3])
    for number, group in zip([3, 0], await complete_prompts(server, [3, 0]), strict=True):
        for choice, same in zip(group, in_order[number], strict=True):
            assert choice.token_ids == same.token_ids
            assert choice.token_logprobs == pytest.approx(same.token_logprobs, abs=FLOAT32_BOUND)
    assert len({tuple(choice.token_ids) for group in in_order for choice in group}) > 12


async def test_a_completion_ends_with_its_stop_token_or_at_its_length(server: VllmServer) -> None:
    groups = await complete_prompts(server, [0, 1, 2, 3])
    choices = [choice for group in groups for choice in group]
    assert {choice.finish_reason for choice in choices} == {"stop", "length"}
    for choice in choices:
        ends = [token in SAMPLING.stop_token_ids for token in choice.token_ids]
        assert not any(ends[:-1])
        assert ends[-1] == (choice.finish_reason == "stop")
        assert choice.finish_reason == "stop" or len(ends) == SAMPLING.max_tokens


async def test_more_prompt_tokens_than_fit_into_one_step_are_served(server: VllmServer) -> None:
    # vLLM reads 2,048 tokens per step, and on CPU cannot split a seeded prompt.
    prompts = [[2 + (i + j) % 26 for j in range(100)] for i in range(64)]
    request = GenerationRequest(prompts, list(range(64)), 1, Sampling(max_tokens=4))
    assert all(choice.token_ids for [choice] in await complete(server, request))


@pytest.mark.parametrize(
    ("prompt", "max_tokens", "message"),
    [([5, 30], 4, r"not in 0\.\.29"), ([5] * 100, 40, "maximum length of 128")],
)
async def test_a_prompt_that_the_model_cannot_take_is_refused(
    server: VllmServer, prompt: list[int], max_tokens: int, message: str
) -> None:
    request = GenerationRequest([prompt], [1], 1, Sampling(max_tokens=max_tokens))
    with pytest.raises(DataError, match=message):
        await complete(server, request)


def reshape_tensor(directory: Path) -> None:
    tensors = load_file(directory / "model.safetensors")
    name = "model.embed_tokens.weight"
    save_file(tensors | {name: tensors[name][:-1].clone()}, directory / "model.safetensors")


def change_configuration(directory: Path) -> None:
    config = (directory / "config.json").read_text()
    (directory / "config.json").write_text(
        config.replace('"rms_norm_eps": 1e-06', '"rms_norm_eps": 1e-05')
    )


def truncate_weights(directory: Path) -> None:
    whole = (directory / "model.safetensors").read_bytes()
    (directory / "model.safetensors").write_bytes(whole[:-1000])


@pytest.mark.parametrize("spoil", [reshape_tensor, change_configuration, truncate_weights])
async def test_weights_that_do_not_fit_are_refused_and_change_nothing(
    server: VllmServer, tied: RandomPolicies, spoil: Callable[[Path], None]
) -> None:
    bad = tied.root / "bad"
    shutil.rmtree(bad, ignore_errors=True)
    shutil.copytree(tied.directory(1), bad)
    spoil(bad)
    async with server.client() as client:
        before = await client.load_weights(tied.directory(0), 0)
        with pytest.raises(WrongPolicy, match="the weights at"):
            await client.load_weights(bad, 1)
        assert (await client.loaded()).weights_id == before.weights_id
        scores = (await client.logprobs(CANARY)).logprobs
    for sequence, score in zip(CANARY, scores, strict=True):
        assert score == pytest.approx(tied.logprobs(0, sequence), abs=FLOAT32_BOUND)


async def test_the_policy_spans_of_requests_in_flight_name_the_weights_that_drew_each_token(
    server: VllmServer, tied: RandomPolicies
) -> None:
    prompts = [[5 + i, 3] for i in range(16)]
    body = {"prompt": prompts, "n": 4, "max_tokens": 100, "logprobs": 1, "return_token_ids": True}
    async with (
        httpx.AsyncClient(
            base_url=server.base_url, headers=AUTHORIZED, timeout=300, trust_env=False
        ) as http,
        server.client() as client,
    ):
        request = asyncio.create_task(http.post("/v1/completions", json=body))
        # A fixed number of loads: after each, vLLM reads the tokens so far again.
        for version in (0, 1, 0, 1):
            await asyncio.sleep(0.2)
            await client.load_weights(tied.directory(version), version)
        choices = Completion.model_validate_json((await request).content).choices
    assert len(choices) == 64
    assert max(len(choice.policy) for choice in choices) > 2
    for choice in choices:
        assert sum(span.num_tokens for span in choice.policy) == len(choice.token_ids)
        prompt, start = choice.prompt_token_ids, 0
        sequence = [*prompt, *choice.token_ids]
        for span in choice.policy:
            if span.version is not None:
                drawn = slice(start, start + span.num_tokens)
                expected = tied.logprobs(span.version, sequence)[len(prompt) - 1 :][drawn]
                assert choice.token_logprobs[drawn] == pytest.approx(expected, abs=FLOAT32_BOUND)
            start += span.num_tokens
