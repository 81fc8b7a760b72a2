"""The transformers model: packing, export, and errors of bad directories."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from torchrl_ckpt_transformers.model import TransformersModel, TransformersModelConfig
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.support.tiny_model import TINY, TOKENIZER, tiny_model
from torchrl_ckpt.plugin_api.errors import ModelError

DOCUMENTS = [[5, 6, 7, 3, 7, 6, 5, 1], [9], [8, 9, 3, 9, 8, 1], [10, 11, 12, 13, 3]]
ROWS = [[0, 1, 2], [3, 0], [2, 1, 1]]


def _pack(rows: list[list[int]]) -> tuple[torch.Tensor, torch.Tensor]:
    """Return `input_ids` and `position_ids` `[rows, 24]` of the documents, padded with 0."""
    tokens, positions = torch.zeros(len(rows), 24).long(), torch.zeros(len(rows), 24).long()
    for row, documents in enumerate(rows):
        ids = [token for document in documents for token in DOCUMENTS[document]]
        in_row = [i for document in documents for i in range(len(DOCUMENTS[document]))]
        tokens[row, : len(ids)] = torch.tensor(ids)
        positions[row, : len(ids)] = torch.tensor(in_row)
    return tokens, positions


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_a_document_does_not_see_its_neighbours_in_the_row(attention: str) -> None:
    model = TransformersModel(
        TransformersModelConfig(
            architecture="qwen3", tokenizer=str(TOKENIZER), config=TINY, attention=attention
        )
    ).build(pretrained=False)
    packed = model(*_pack(ROWS))
    for row, documents in enumerate(ROWS):
        start = 0
        for document in documents:
            end = start + len(DOCUMENTS[document])
            alone = model(*_alone(document))
            torch.testing.assert_close(packed[row, start:end], alone[0], rtol=0, atol=1e-5)
            start = end


def test_gradients_of_packed_documents_are_those_of_each_alone() -> None:
    model = tiny_model().build(pretrained=False)

    def gradients(loss: torch.Tensor) -> list[torch.Tensor]:
        return list(torch.autograd.grad(loss, list(model.parameters())))

    real = sum(len(DOCUMENTS[d]) for d in ROWS[0])
    packed = gradients(model(*_pack([ROWS[0]]))[:, :real].logsumexp(-1).sum())
    alone = [gradients(model(*_alone(d)).logsumexp(-1).sum()) for d in ROWS[0]]
    for together, *apart in zip(packed, *alone, strict=True):
        torch.testing.assert_close(together, sum(apart), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("tied", [False, True])
def test_an_exported_directory_loads_with_the_library_alone(tied: bool, tmp_path: Path) -> None:
    model = tiny_model(tie_word_embeddings=tied)
    built = model.build(pretrained=False)
    model.export(built.state_dict(), tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    for name, tensor in built.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor), name
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    assert loaded.generation_config.eos_token_id == tokenizer.eos_token_id == 1


def test_equal_tensors_export_to_equal_bytes(tmp_path: Path) -> None:
    model = tiny_model()
    state = model.build(pretrained=False).state_dict()
    model.export(state, tmp_path / "a")
    model.export(dict(reversed(state.items())), tmp_path / "b")
    for file in (tmp_path / "a").iterdir():
        assert file.read_bytes() == (tmp_path / "b" / file.name).read_bytes(), file.name


def test_an_export_of_another_models_tensors_is_refused(tmp_path: Path) -> None:
    state = tiny_model(num_hidden_layers=1).build(pretrained=False).state_dict()
    with pytest.raises(ModelError, match=r"missing.*layers\.1"):
        tiny_model().export(state, tmp_path)


def test_a_named_model_is_built_with_its_weights_or_without(published: Path) -> None:
    named = TransformersModel(TransformersModelConfig(name=str(published / "step_0")))
    stored = AutoModelForCausalLM.from_pretrained(published / "step_0").state_dict()
    pretrained = named.build(pretrained=True).state_dict()
    random = named.build(pretrained=False).state_dict()
    assert all(torch.equal(pretrained[name], stored[name]) for name in stored)
    assert random.keys() == stored.keys()
    assert not torch.equal(random["lm_head.weight"], stored["lm_head.weight"])


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({}, "either `name` or `architecture`"),
        ({"name": "a", "architecture": "b"}, "either `name` or `architecture`"),
        ({"name": "a", "config": {"x": 1}}, "brings its own"),
        ({"architecture": "qwen3"}, "give its `tokenizer`"),
    ],
)
def test_a_model_table_names_one_source(config: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TransformersModelConfig(**config)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"name": "/no/such/model"}, "/no/such/model: no such directory"),
        ({"architecture": "qwem3"}, "did you mean `qwen3`"),
        ({"architecture": "vit"}, "no such causal language model"),
        ({"architecture": "qwen3", "config": {"hiden_size": 8}}, "did you mean `hidden_size`"),
        ({"architecture": "qwen3", "config": {"hidden_size": "8"}}, "expected int, got str"),
        ({"architecture": "qwen3", "attention": "sdpaa"}, "sdpaa"),
    ],
)
def test_a_model_that_cannot_be_built_says_why(config: dict, message: str) -> None:
    model = TransformersModel(TransformersModelConfig(tokenizer=str(TOKENIZER), **config))
    with pytest.raises(ModelError, match=message) as caught:
        model.build(pretrained=True)
    assert len(str(caught.value)) < 700


@pytest.mark.parametrize(
    ("lacking", "part"),
    [
        ("config.json", "configuration"),
        ("model.safetensors", "weights"),
        ("tokenizer*", "tokenizer"),
    ],
)
def test_a_directory_without_a_part_is_named_with_the_part(
    lacking: str, part: str, published: Path, tmp_path: Path
) -> None:
    directory = tmp_path / "model"
    shutil.copytree(published / "step_0", directory)
    for file in directory.glob(lacking):
        file.unlink()
    model = TransformersModel(TransformersModelConfig(name=str(directory)))
    with pytest.raises(ModelError, match=f"{directory}: no usable {part}"):
        model.tokenizer() if part == "tokenizer" else model.build(pretrained=True)


def _alone(document: int) -> tuple[torch.Tensor, torch.Tensor]:
    tokens = torch.tensor([DOCUMENTS[document]])
    return tokens, torch.arange(tokens.shape[1])[None]
