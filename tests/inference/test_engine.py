"""The embedded engine: what a sample depends on, and what a load of weights may do."""

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
from torchrl_ckpt_transformers.engine import TransformersEngine, TransformersEngineConfig

from tests.support.tiny_model import tiny_model
from torchrl_ckpt.plugin_api.engines import DrawnTokens, GenerationRequest, Sample, Sampling
from torchrl_ckpt.plugin_api.errors import ModelError

PROMPTS = [[5, 6, 7, 3], [9, 3], [20, 21, 22, 23, 24, 25, 26, 3], [8, 8, 3], [11, 3], [4, 5, 6, 3]]
SEEDS = [11, 2**64 - 1, 13, 14, 15, 16]
SAMPLING = Sampling(max_tokens=12, stop_token_ids=(1, 7, 8))


def started(max_length: int | None = None, **options: Any) -> TransformersEngine:
    engine = TransformersEngine(TransformersEngineConfig(device="cpu", **options))
    torch.manual_seed(0)
    engine.start(tiny_model(), max_length=max_length, threads=1)
    return engine


@pytest.fixture(scope="module")
def engine() -> Iterator[TransformersEngine]:
    engine = started()
    yield engine
    engine.close()


def generate(engine: TransformersEngine, order: list[int], num_samples: int = 4) -> list[Any]:
    request = GenerationRequest(
        [PROMPTS[i] for i in order], [SEEDS[i] for i in order], num_samples, SAMPLING
    )
    return asyncio.run(engine.generate(request))


def assert_same(some: list[Sample], others: list[Sample]) -> None:
    for one, other in zip(some, others, strict=True):
        assert one.token_ids == other.token_ids
        assert one.finish_reason == other.finish_reason
        assert one.logprobs == pytest.approx(other.logprobs, abs=1e-5)


def test_the_same_request_gives_the_same_bits(engine: TransformersEngine) -> None:
    assert generate(engine, [0, 1, 2, 3, 4, 5]) == generate(engine, [0, 1, 2, 3, 4, 5])


def test_a_sample_does_not_depend_on_its_place_in_the_batch(engine: TransformersEngine) -> None:
    straight = generate(engine, [0, 1, 2, 3, 4, 5])
    order = [3, 5, 0, 4, 2, 1]
    for place, samples in enumerate(generate(engine, order)):
        assert_same(samples, straight[order[place]])


def test_a_sample_does_not_depend_on_its_neighbours(engine: TransformersEngine) -> None:
    straight = generate(engine, [0, 1, 2, 3, 4, 5])
    for prompt in range(6):
        assert_same(generate(engine, [prompt])[0], straight[prompt])
    assert_same(generate(engine, [2], num_samples=2)[0], straight[2][:2])


def test_a_batch_that_is_too_large_is_cut_without_a_trace(engine: TransformersEngine) -> None:
    small = started(max_batch=5)
    straight = generate(engine, [0, 1, 2, 3, 4, 5])
    for cut, samples in zip(generate(small, [0, 1, 2, 3, 4, 5]), straight, strict=True):
        assert_same(cut, samples)
    small.close()


def test_samples_of_a_prompt_differ(engine: TransformersEngine) -> None:
    [samples] = generate(engine, [0], num_samples=8)
    assert len({tuple(sample.token_ids) for sample in samples}) > 1


def test_a_completion_ends_with_its_stop_token_or_at_its_length(engine: TransformersEngine) -> None:
    samples = [s for group in generate(engine, [0, 1, 2, 3, 4, 5], 16) for s in group]
    assert {sample.finish_reason for sample in samples} == {"stop", "length"}
    for sample in samples:
        ends = [token in SAMPLING.stop_token_ids for token in sample.token_ids]
        assert len(sample.logprobs) == len(sample.token_ids)
        assert not any(ends[:-1])
        assert ends[-1] == (sample.finish_reason == "stop")
        assert sample.finish_reason == "stop" or len(ends) == SAMPLING.max_tokens


def test_tokens_are_told_as_they_are_drawn_and_before_the_samples(
    engine: TransformersEngine,
) -> None:
    small = started(max_batch=5)  # several batches, whose prompts overlap
    request = GenerationRequest(PROMPTS, SEEDS, 4, SAMPLING)
    told: dict[tuple[int, int], list[tuple[int, float]]] = {}

    def on_tokens(drawn: DrawnTokens) -> None:
        assert threading.current_thread() is threading.main_thread()
        sample = told.setdefault((drawn.prompt, drawn.sample), [])
        sample += zip(drawn.token_ids, drawn.logprobs, strict=True)

    groups = asyncio.run(small.generate(request, on_tokens))
    assert len(told) == 24
    for prompt, group in enumerate(groups):
        for number, sample in enumerate(group):
            drawn = zip(sample.token_ids, sample.logprobs, strict=True)
            assert told[prompt, number] == list(drawn)
    small.close()


def test_a_call_that_is_cancelled_ends_within_a_step(engine: TransformersEngine) -> None:
    steps_after = 0

    def on_forward(*_: object) -> None:
        nonlocal steps_after
        steps_after += cancelled

    hook = engine._model.register_forward_hook(on_forward)
    cancelled = False

    async def scenario() -> None:
        nonlocal cancelled
        begun = asyncio.Event()
        request = GenerationRequest(PROMPTS, SEEDS, 4, Sampling(max_tokens=100))

        def on_tokens(drawn: DrawnTokens) -> None:
            assert not cancelled, "told after the end"
            begun.set()

        calls = [asyncio.create_task(engine.generate(request, on_tokens)) for _ in range(2)]
        await begun.wait()
        cancelled = True
        for call in calls:  # one that is decoding, and one that waits for its turn
            call.cancel()
        assert all(
            isinstance(end, asyncio.CancelledError)
            for end in await asyncio.gather(*calls, return_exceptions=True)
        )
        await engine.weights_digest()  # whose turn comes when the thread is free

    asyncio.run(scenario())
    hook.remove()
    # The step that was being computed, and one that began before the word had come through.
    assert steps_after <= 2


def test_logprobs_of_a_sample_are_those_of_the_sequence(engine: TransformersEngine) -> None:
    sequences, expected = [], []
    for prompt, samples in zip(PROMPTS, generate(engine, [0, 1, 2, 3, 4, 5]), strict=True):
        for sample in samples:
            sequences.append([*prompt, *sample.token_ids])
            expected.append(sample.logprobs)
    for values, tail in zip(asyncio.run(engine.logprobs(sequences)), expected, strict=True):
        assert values[-len(tail) :] == pytest.approx(tail, abs=1e-5)


def test_logprobs_are_the_models_own(engine: TransformersEngine, published: Path) -> None:
    asyncio.run(engine.load_weights(published / "step_1"))
    torch.manual_seed(1)
    module = tiny_model().build(pretrained=False)
    sequences = [[5, 6, 7, 3, 7, 6, 5, 1], [9], [8, 9, 3]]
    for sequence, values in zip(sequences, asyncio.run(engine.logprobs(sequences)), strict=True):
        tokens = torch.tensor([sequence])
        own = module(tokens, torch.arange(len(sequence))[None]).log_softmax(-1)
        own = own[0, :-1].gather(-1, tokens[0, 1:, None])[:, 0]
        assert values == pytest.approx(own.tolist(), abs=1e-5)


@pytest.mark.parametrize("tied", [False, True])
def test_a_load_changes_what_is_computed_and_the_digest(tied: bool, tmp_path: Path) -> None:
    model = tiny_model(tie_word_embeddings=tied)
    engine = TransformersEngine(TransformersEngineConfig(device="cpu"))
    engine.start(model, max_length=None, threads=1)
    before = asyncio.run(engine.logprobs(PROMPTS)), asyncio.run(engine.weights_digest())
    model.export(model.build(pretrained=False).state_dict(), tmp_path)
    asyncio.run(engine.load_weights(tmp_path))
    after = asyncio.run(engine.logprobs(PROMPTS)), asyncio.run(engine.weights_digest())
    assert after[0] != before[0]
    assert after[1] == digest_tensors(load_file(tmp_path / "model.safetensors")) != before[1]
    engine.close()


def _lacking(weights: dict[str, torch.Tensor]) -> None:
    del weights["model.layers.1.mlp.up_proj.weight"]


def _surplus(weights: dict[str, torch.Tensor]) -> None:
    weights["model.layers.7.mlp.up_proj.weight"] = torch.zeros(3)


def _misshapen(weights: dict[str, torch.Tensor]) -> None:
    weights["lm_head.weight"] = torch.zeros(30, 64)


@pytest.mark.parametrize("damage", [_lacking, _surplus, _misshapen])
def test_a_load_of_other_tensors_is_refused_and_changes_nothing(
    damage: Any, engine: TransformersEngine, published: Path, tmp_path: Path
) -> None:
    directory = tmp_path / "damaged"
    shutil.copytree(published / "step_1", directory)
    weights = load_file(directory / "model.safetensors")
    damage(weights)
    save_file(weights, directory / "model.safetensors", metadata={"format": "pt"})
    before = asyncio.run(engine.weights_digest())
    with pytest.raises(ModelError, match=str(directory)):
        asyncio.run(engine.load_weights(directory))
    assert asyncio.run(engine.weights_digest()) == before


def test_a_load_of_another_model_is_refused(engine: TransformersEngine, tmp_path: Path) -> None:
    other = tiny_model(num_hidden_layers=1, layer_types=["full_attention"])
    other.export(other.build(pretrained=False).state_dict(), tmp_path)
    with pytest.raises(ModelError, match="num_hidden_layers 1, not 2"):
        asyncio.run(engine.load_weights(tmp_path))


@pytest.mark.parametrize(
    ("prompt", "message"),
    [([], "empty"), ([30], r"not in 0\.\.29"), ([-1], "not in"), ([4] * 120, "maximum length")],
)
def test_a_prompt_that_the_model_cannot_take_is_a_value_error(
    prompt: list[int], message: str, engine: TransformersEngine
) -> None:
    with pytest.raises(ValueError, match=message):
        asyncio.run(engine.generate(GenerationRequest([prompt], [0], 1, SAMPLING)))


def test_a_longer_maximum_than_the_models_is_refused() -> None:
    with pytest.raises(ModelError, match="exceeds the 128 tokens"):
        started(max_length=129)
