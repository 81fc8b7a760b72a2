"""The tiny Qwen3 of the recipes, with random weights."""

from __future__ import annotations

from pathlib import Path

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


@torch.no_grad()
def logprobs_of(module: torch.nn.Module, sequence: list[int]) -> list[float]:
    """Of every token but the first, in nats, as a trainer writes them into a canary."""
    tokens = torch.tensor([sequence])
    logits = module(tokens, torch.arange(len(sequence))[None])
    return logits.log_softmax(-1)[0, :-1].gather(-1, tokens[0, 1:, None])[:, 0].tolist()
