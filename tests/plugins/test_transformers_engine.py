"""The embedded engine: what a sample depends on, and what a load of weights changes."""

from __future__ import annotations

import asyncio
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torchrl_ckpt_transformers.digest import digest_tensors
from torchrl_ckpt_transformers.transformers_engine import (
    TransformersEngine,
    TransformersEngineConfig,
)

from tests.support.tiny_model import TinyModel, logprobs_of, tiny_model
from torchrl_ckpt.plugin_api.engines import DrawnTokens, GenerationRequest, Sample, Sampling
from torchrl_ckpt.plugin_api.errors import ModelError

PROMPTS = [[5, 6, 7, 3], [9, 3], [20, 21, 22, 23, 24, 25, 26, 3], [8, 8, 3], [11, 3], [4, 5, 6, 3]]
SEEDS = [11, 2**64 - 1, 13, 14, 15, 16]
SAMPLING = Sampling(max_tokens=12, stop_token_ids=(1, 7, 8))


@pytest.fixture(scope="module", name="model")
def make_model() -> TinyModel:
    return tiny_model()


@pytest.fixture(scope="module", name="engine")
def start_engine(model: TinyModel) -> Iterator[TransformersEngine]:
    """An engine on `model`, whose `module` is the engine's."""
    engine = start(model)
    yield engine
    engine.close()


def start(model: TinyModel, *, max_length: int | None = None, **options: Any) -> TransformersEngine:
    engine = TransformersEngine(TransformersEngineConfig(device="cpu", **options))
    torch.manual_seed(0)
    engine.start(model, max_length=max_length, threads=1)
    return engine


async def generate(
    engine: TransformersEngine, order: list[int], num_samples: int = 4
) -> list[list[Sample]]:
    request = GenerationRequest(
        [PROMPTS[i] for i in order], [SEEDS[i] for i in order], num_samples, SAMPLING
    )
    return await engine.generate(request)


def assert_same(samples: list[Sample], expected: list[Sample]) -> None:
    for sample, same in zip(samples, expected, strict=True):
        assert sample.token_ids == same.token_ids
        assert sample.finish_reason == same.finish_reason
        assert sample.logprobs == pytest.approx(same.logprobs, abs=1e-5)


async def test_the_same_request_gives_the_same_bits(engine: TransformersEngine) -> None:
    assert await generate(engine, [0, 1, 2, 3, 4, 5]) == await generate(engine, [0, 1, 2, 3, 4, 5])


async def test_a_sample_does_not_depend_on_its_position_in_the_batch(
    engine: TransformersEngine,
) -> None:
    straight = await generate(engine, [0, 1, 2, 3, 4, 5])
    order = [3, 5, 0, 4, 2, 1]
    for position, samples in enumerate(await generate(engine, order)):
        assert_same(samples, straight[order[position]])


async def test_a_sample_does_not_depend_on_its_neighbours(engine: TransformersEngine) -> None:
    straight = await generate(engine, [0, 1, 2, 3, 4, 5])
    for prompt in range(6):
        assert_same((await generate(engine, [prompt]))[0], straight[prompt])
    assert_same((await generate(engine, [2], num_samples=2))[0], straight[2][:2])


async def test_splitting_a_large_batch_changes_no_sample(engine: TransformersEngine) -> None:
    small = start(tiny_model(), max_batch=5)
    straight = await generate(engine, [0, 1, 2, 3, 4, 5])
    for split, samples in zip(await generate(small, [0, 1, 2, 3, 4, 5]), straight, strict=True):
        assert_same(split, samples)
    small.close()


async def test_samples_of_a_prompt_differ(engine: TransformersEngine) -> None:
    [samples] = await generate(engine, [0], num_samples=8)
    assert len({tuple(sample.token_ids) for sample in samples}) > 1


async def test_a_completion_ends_with_its_stop_token_or_at_its_length(
    engine: TransformersEngine,
) -> None:
    samples = [s for group in await generate(engine, [0, 1, 2, 3, 4, 5], 16) for s in group]
    assert {sample.finish_reason for sample in samples} == {"stop", "length"}
    for sample in samples:
        ends = [token in SAMPLING.stop_token_ids for token in sample.token_ids]
        assert len(sample.logprobs) == len(sample.token_ids)
        assert not any(ends[:-1])
        assert ends[-1] == (sample.finish_reason == "stop")
        assert sample.finish_reason == "stop" or len(ends) == SAMPLING.max_tokens


async def test_tokens_are_reported_as_they_are_drawn_and_before_the_samples(
    engine: TransformersEngine,
) -> None:
    small = start(tiny_model(), max_batch=5)  # several batches, whose prompts overlap
    request = GenerationRequest(PROMPTS, SEEDS, 4, SAMPLING)
    reported: dict[tuple[int, int], list[tuple[int, float]]] = {}

    def on_tokens(drawn: DrawnTokens) -> None:
        assert threading.current_thread() is threading.main_thread()
        sample = reported.setdefault((drawn.prompt, drawn.sample), [])
        sample += zip(drawn.token_ids, drawn.logprobs, strict=True)

    groups = await small.generate(request, on_tokens)
    assert len(reported) == 24
    for prompt, group in enumerate(groups):
        for number, sample in enumerate(group):
            drawn = zip(sample.token_ids, sample.logprobs, strict=True)
            assert reported[prompt, number] == list(drawn)
    small.close()


async def test_a_cancelled_call_ends_within_a_step(
    engine: TransformersEngine, model: TinyModel
) -> None:
    num_steps_after = 0
    cancelled = False
    started = asyncio.Event()

    def on_forward(*_: object) -> None:
        nonlocal num_steps_after
        num_steps_after += cancelled

    def on_tokens(drawn: DrawnTokens) -> None:
        assert not cancelled, "a token was reported after the cancellation"
        started.set()

    hook = model.module.register_forward_hook(on_forward)
    request = GenerationRequest(PROMPTS, SEEDS, 4, Sampling(max_tokens=100))
    calls = [asyncio.create_task(engine.generate(request, on_tokens)) for _ in range(2)]
    await started.wait()
    cancelled = True
    for call in calls:  # the first is decoding, the second waits
        call.cancel()
    ends = await asyncio.gather(*calls, return_exceptions=True)
    assert all(isinstance(end, asyncio.CancelledError) for end in ends)
    await engine.weights_digest()  # runs once the engine's thread is free
    hook.remove()
    # The current step, and one that started before its thread saw the cancellation.
    assert num_steps_after <= 2


async def test_logprobs_of_a_sample_are_those_of_the_sequence(engine: TransformersEngine) -> None:
    sequences, expected = [], []
    for prompt, samples in zip(PROMPTS, await generate(engine, [0, 1, 2, 3, 4, 5]), strict=True):
        for sample in samples:
            sequences.append([*prompt, *sample.token_ids])
            expected.append(sample.logprobs)
    for values, tail in zip(await engine.logprobs(sequences), expected, strict=True):
        assert values[-len(tail) :] == pytest.approx(tail, abs=1e-5)


async def test_logprobs_are_the_models_own(engine: TransformersEngine, published: Path) -> None:
    await engine.load_weights(published / "step_1")
    torch.manual_seed(1)
    module = tiny_model().build(pretrained=False)
    sequences = [[5, 6, 7, 3, 7, 6, 5, 1], [9], [8, 9, 3]]
    for sequence, values in zip(sequences, await engine.logprobs(sequences), strict=True):
        assert values == pytest.approx(logprobs_of(module, sequence), abs=1e-5)


@pytest.mark.parametrize("tied", [False, True])
async def test_a_load_changes_what_is_computed_and_the_digest(tied: bool, tmp_path: Path) -> None:
    model = tiny_model(tie_word_embeddings=tied)
    engine = TransformersEngine(TransformersEngineConfig(device="cpu"))
    engine.start(model, max_length=None, threads=1)
    before = await engine.logprobs(PROMPTS), await engine.weights_digest()
    model.export(model.build(pretrained=False).state_dict(), tmp_path)
    await engine.load_weights(tmp_path)
    after = await engine.logprobs(PROMPTS), await engine.weights_digest()
    assert after[0] != before[0]
    assert after[1] == digest_tensors(load_file(tmp_path / "model.safetensors")) != before[1]
    engine.close()


def _remove_tensor(weights: dict[str, torch.Tensor]) -> None:
    del weights["model.layers.1.mlp.up_proj.weight"]


def _add_tensor(weights: dict[str, torch.Tensor]) -> None:
    weights["model.layers.7.mlp.up_proj.weight"] = torch.zeros(3)


def _reshape_tensor(weights: dict[str, torch.Tensor]) -> None:
    weights["lm_head.weight"] = torch.zeros(30, 64)


@pytest.mark.parametrize("damage", [_remove_tensor, _add_tensor, _reshape_tensor])
async def test_a_load_of_other_tensors_is_refused_and_changes_nothing(
    damage: Any, engine: TransformersEngine, published: Path, tmp_path: Path
) -> None:
    directory = tmp_path / "damaged"
    shutil.copytree(published / "step_1", directory)
    weights = load_file(directory / "model.safetensors")
    damage(weights)
    save_file(weights, directory / "model.safetensors", metadata={"format": "pt"})
    before = await engine.weights_digest()
    with pytest.raises(ModelError, match=str(directory)):
        await engine.load_weights(directory)
    assert await engine.weights_digest() == before


async def test_a_load_of_another_model_is_refused(
    engine: TransformersEngine, tmp_path: Path
) -> None:
    other = tiny_model(num_hidden_layers=1, layer_types=["full_attention"])
    other.export(other.build(pretrained=False).state_dict(), tmp_path)
    with pytest.raises(ModelError, match="num_hidden_layers 1, not 2"):
        await engine.load_weights(tmp_path)


@pytest.mark.parametrize(
    ("prompt", "message"),
    [([], "empty"), ([30], r"not in 0\.\.29"), ([-1], "not in"), ([4] * 120, "maximum length")],
)
async def test_a_prompt_that_the_model_cannot_take_is_a_value_error(
    prompt: list[int], message: str, engine: TransformersEngine
) -> None:
    with pytest.raises(ValueError, match=message):
        await engine.generate(GenerationRequest([prompt], [0], 1, SAMPLING))


def test_a_longer_maximum_than_the_models_is_refused() -> None:
    with pytest.raises(ModelError, match="exceeds the 128 tokens"):
        start(tiny_model(), max_length=129)
