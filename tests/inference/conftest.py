"""A tiny Qwen3 as the recipes have it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torchrl_ckpt_transformers.model import TransformersModel, TransformersModelConfig

TOKENIZER = Path(__file__).parents[2] / "recipes" / "reverse" / "tokenizer"

TINY = {
    "num_hidden_layers": 2,
    "hidden_size": 128,
    "intermediate_size": 384,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "head_dim": 32,
    "max_position_embeddings": 128,
    "tie_word_embeddings": False,
}


def tiny_model(**options: object) -> TransformersModel:
    """A model plugin for a random tiny Qwen3; `options` change its `config`."""
    return TransformersModel(
        TransformersModelConfig(
            architecture="qwen3", tokenizer=str(TOKENIZER), config={**TINY, **options}
        )
    )


@pytest.fixture(scope="session")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with two policies, `step_0` and `step_1`, of random weights."""
    root = tmp_path_factory.mktemp("weights")
    model = tiny_model()
    for step in (0, 1):
        torch.manual_seed(step)
        model.export(model.build(pretrained=False).state_dict(), root / f"step_{step}")
    return root
