"""The tiny Qwen3 of the recipes, with random weights."""

from __future__ import annotations

from pathlib import Path

import torch
from torchrl_ckpt_transformers.model import TransformersModel, TransformersModelConfig
from transformers import PreTrainedModel

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


class TinyModel(TransformersModel):
    """A model plugin that shows the `module` which it built last, such as that of an engine."""

    module: PreTrainedModel

    def causal_lm(self, *, pretrained: bool) -> PreTrainedModel:
        self.module = super().causal_lm(pretrained=pretrained)
        return self.module


def tiny_model(**options: object) -> TinyModel:
    """Return the plugin of a random tiny Qwen3; `options` change its `config`."""
    return TinyModel(
        TransformersModelConfig(
            architecture="qwen3", tokenizer=str(TOKENIZER), config={**TINY, **options}
        )
    )


@torch.no_grad()
def logprobs_of(module: torch.nn.Module, sequence: list[int]) -> list[float]:
    """Return the log-probability (nats) of every token but the first, as in a trainer's canary."""
    tokens = torch.tensor([sequence])
    logits = module(tokens, torch.arange(len(sequence))[None])
    return logits.log_softmax(-1)[0, :-1].gather(-1, tokens[0, 1:, None])[:, 0].tolist()
