"""A published policy holds the trained weights, and its canary and digest recognise them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torchrl_ckpt_transformers.digest import digest_tensors
from transformers import AutoModelForCausalLM

from tests.support.rollouts import ATTEMPT_ID
from tests.support.tiny_model import logprobs_of, tiny_model
from tests.support.tiny_trainer import SMALLEST, patience, tiny_trainer
from torchrl_ckpt.plugin_api.errors import NotFinite
from torchrl_ckpt.plugin_api.models import Model
from torchrl_ckpt.run.weight_store import Policy, WeightStore
from torchrl_ckpt.trainer.distributed import World
from torchrl_ckpt.trainer.publisher import CanaryOptions, Publisher


class PlainModel:
    """The tiny model without the optional `digest`."""

    plugin_api = 1

    def __init__(self) -> None:
        self._plugin = tiny_model(**SMALLEST)
        self.tokenizer = self._plugin.tokenizer
        self.build = self._plugin.build
        self.parallelize = self._plugin.parallelize

    def export(self, state: Mapping[str, torch.Tensor], directory: Path) -> None:
        self._plugin.export(state, directory)


def publisher(world: World, run: Path, plugin: Model | None = None) -> Publisher:
    plugin = plugin or tiny_model(**SMALLEST)
    torch.manual_seed(0)
    model = plugin.build(pretrained=False).train()
    plugin.parallelize(model, world.mesh, param_dtype=torch.float32)
    return Publisher(
        plugin,
        model,
        WeightStore(run / "weights"),
        attempt_id=ATTEMPT_ID,
        world=world,
        patience=patience(run),
        canary=CanaryOptions(seed=0, longest=40),
    )


def published(run: Path, version: int) -> Policy:
    policy = WeightStore(run / "weights").read(version, attempt_id=ATTEMPT_ID)
    assert policy is not None
    return policy


def test_the_canary_is_what_the_published_weights_compute(world: World, tmp_path: Path) -> None:
    publisher(world, tmp_path).publish(7, last=False)
    canary = published(tmp_path, 7).canary
    served = AutoModelForCausalLM.from_pretrained(tmp_path / "weights/step_7")
    assert canary.dtype == "float32"
    assert list(map(len, canary.sequences)) == [16] * 7 + [40]
    for sequence, logprobs in zip(canary.sequences, canary.logprobs, strict=True):
        tokens = torch.tensor([sequence])
        with torch.no_grad():
            logits = served(tokens, use_cache=False).logits[0, :-1]
        expected = logits.log_softmax(-1).gather(-1, tokens[0, 1:, None])[:, 0]
        torch.testing.assert_close(torch.tensor(logprobs), expected, rtol=0, atol=1e-5)


def test_neighbours_share_the_fixed_sequences_alone_and_a_resume_gives_the_same(
    world: World, tmp_path: Path
) -> None:
    sequences = []
    for run, version in (("a", 7), ("a", 8), ("b", 8)):
        publisher(world, tmp_path / run).publish(version, last=False)
        sequences.append(published(tmp_path / run, version).canary.sequences)
    shared = [one == other for one, other in zip(*sequences[:2], strict=True)]
    assert shared == [True] * 4 + [False] * 4
    assert sequences[1] == sequences[2]


def test_a_model_with_nan_is_not_published(world: World, tmp_path: Path) -> None:
    class BrokenModel(PlainModel):
        def __init__(self) -> None:
            super().__init__()
            self.build = self._build_broken

        def _build_broken(self, *, pretrained: bool) -> torch.nn.Module:
            model = tiny_model(**SMALLEST).build(pretrained=pretrained)
            for parameter in model.parameters():
                parameter.data.fill_(float("nan"))
            return model

    with pytest.raises(NotFinite, match="the model of step 7 gives log-probabilities"):
        publisher(world, tmp_path, BrokenModel()).publish(7, last=False)
    assert not (tmp_path / "weights/step_7").exists()


def test_the_canary_of_other_weights_is_another_one(world: World, tmp_path: Path) -> None:
    trainer = tiny_trainer(tmp_path, world)
    trainer.run(publish_policies=True)
    first, second = (trainer.weights().read(step, attempt_id=trainer.attempt.id) for step in (1, 2))
    assert first is not None
    assert second is not None
    assert first.canary.sequences[:4] == second.canary.sequences[:4]
    assert first.canary.logprobs[:4] != second.canary.logprobs[:4]


def test_the_digest_is_that_of_the_published_tensors(world: World, tmp_path: Path) -> None:
    publisher(world, tmp_path).publish(0, last=False)
    tensors = load_file(tmp_path / "weights/step_0/model.safetensors")
    assert published(tmp_path, 0).digest == digest_tensors(tensors)


def test_a_model_plugin_without_digests_publishes_none(world: World, tmp_path: Path) -> None:
    publisher(world, tmp_path, PlainModel()).publish(0, last=False)
    assert published(tmp_path, 0).digest is None


@pytest.mark.parametrize("last", [True, False])
def test_a_policy_says_its_version_its_attempt_and_whether_it_is_the_last(
    world: World, tmp_path: Path, last: bool
) -> None:
    publisher(world, tmp_path).publish(5, last=last)
    policy = published(tmp_path, 5)
    assert (policy.version, policy.attempt_id, policy.last) == (5, ATTEMPT_ID, last)


def test_an_exported_final_model_replaces_a_policy_and_is_none_itself(
    world: World, tmp_path: Path
) -> None:
    output = publisher(world, tmp_path)
    output.publish(5, last=True)
    before = (tmp_path / "weights/step_5/model.safetensors").read_bytes()
    output.export_final(5)
    assert WeightStore(tmp_path / "weights").read(5, attempt_id=ATTEMPT_ID) is None
    assert (tmp_path / "weights/step_5/model.safetensors").read_bytes() == before
    assert [path.name for path in (tmp_path / "weights").iterdir()] == ["step_5"]


def test_publishing_leaves_the_model_in_training_mode_and_without_gradients(
    world: World, tmp_path: Path
) -> None:
    plugin = tiny_model(**SMALLEST)
    model = plugin.build(pretrained=False).train()
    expected = logprobs_of(model, [3, 4, 5])
    Publisher(
        plugin,
        model,
        WeightStore(tmp_path / "weights"),
        attempt_id=ATTEMPT_ID,
        world=world,
        patience=patience(tmp_path),
        canary=CanaryOptions(seed=0, longest=40),
    ).publish(0, last=False)
    assert model.training
    assert all(parameter.grad is None for parameter in model.parameters())
    assert logprobs_of(model, [3, 4, 5]) == expected
