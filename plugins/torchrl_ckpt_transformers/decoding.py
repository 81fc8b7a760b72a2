"""Autoregressive decoding of one batch, with a key-value cache."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch

from torchrl_ckpt.plugin_api import heartbeat
from torchrl_ckpt.plugin_api.engines import Sample, Sampling
from torchrl_ckpt_transformers.noise import uniforms
from torchrl_ckpt_transformers.sampling import draw

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Row = tuple[int, int]
"""A completion to generate: the numbers of its prompt and of its sample."""

OnStep = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], None]
"""Called after each step with the indices (in `rows`) of the rows that drew a token, the tokens,
and their log-probabilities. An exception from it ends the decoding."""


@torch.inference_mode()
def decode(
    model: PreTrainedModel,
    prompts: Sequence[Sequence[int]],
    seeds: Sequence[int],
    rows: Sequence[Row],
    sampling: Sampling,
    on_step: OnStep,
) -> list[Sample]:
    """Generate a completion for each of `rows`, in their order.

    Every prompt runs through the model once, however many samples it has. Finished rows are removed
    from the batch once they are half of it, so that a few long completions do not cost the time of
    a whole batch.
    """
    device = model.device
    prompt_of_row = torch.tensor([prompt for prompt, _ in rows], device=device)
    noise = uniforms(
        np.array([seeds[prompt] % 2**64 for prompt, _ in rows], dtype=np.uint64),
        np.array([sample for _, sample in rows], dtype=np.uint64),
        sampling.max_tokens,
    ).to(device)
    stop = torch.tensor(sampling.stop_token_ids, dtype=torch.long, device=device)

    input_ids, mask = _pad_left(prompts, device)
    output = model(
        input_ids=input_ids,
        attention_mask=mask,
        position_ids=(mask.cumsum(-1) - 1).clamp(min=0),
        use_cache=True,
        logits_to_keep=1,
    )
    cache = output.past_key_values
    cache.batch_select_indices(prompt_of_row)
    logits, mask = output.logits[prompt_of_row, -1], mask[prompt_of_row]
    positions = mask.sum(-1, keepdim=True)

    tokens = torch.zeros(len(rows), sampling.max_tokens, dtype=torch.long, device=device)
    logprobs = torch.zeros(len(rows), sampling.max_tokens, device=device)
    lengths = torch.full((len(rows),), sampling.max_tokens, device=device)
    batch = torch.arange(len(rows), device=device)  # the rows that are still in the batch
    running = torch.ones(len(rows), dtype=torch.bool, device=device)
    for position in range(sampling.max_tokens):
        heartbeat.beat()
        drawn, tokens_logprobs = draw(logits, noise[batch, position], sampling)
        tokens[batch, position], logprobs[batch, position] = drawn, tokens_logprobs
        on_step(batch[running], drawn[running], tokens_logprobs[running])
        ended = running & torch.isin(drawn, stop)
        lengths[batch[ended]] = position + 1
        running = running & ~ended
        num_running = int(running.sum())
        if num_running == 0 or position + 1 == sampling.max_tokens:
            break
        if num_running <= len(batch) // 2:
            remaining = running.nonzero()[:, 0]
            cache.batch_select_indices(remaining)
            batch, drawn, mask = batch[remaining], drawn[remaining], mask[remaining]
            positions, running = positions[remaining], running[remaining]
        mask = torch.cat([mask, mask.new_ones(len(batch), 1)], dim=-1)
        output = model(
            input_ids=drawn[:, None],
            attention_mask=mask,
            position_ids=positions,
            past_key_values=cache,
            use_cache=True,
        )
        logits, positions = output.logits[:, -1], positions + 1
    return _samples(tokens, logprobs, lengths, set(sampling.stop_token_ids))


def _pad_left(
    prompts: Sequence[Sequence[int]], device: torch.device
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return token ids and mask (1 for a token), both `[prompts, longest]`."""
    longest = max(map(len, prompts))
    padded = [[0] * (longest - len(prompt)) + list(prompt) for prompt in prompts]
    mask = [[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts]
    return torch.tensor(padded, device=device), torch.tensor(mask, device=device)


def _samples(
    tokens: torch.Tensor, logprobs: torch.Tensor, lengths: torch.Tensor, stop: set[int]
) -> list[Sample]:
    return [
        Sample(
            token_ids[:length],
            values[:length],
            "stop" if token_ids[length - 1] in stop else "length",
        )
        for token_ids, values, length in zip(
            tokens.tolist(), logprobs.tolist(), lengths.tolist(), strict=True
        )
    ]


@torch.inference_mode()
def score(model: PreTrainedModel, sequences: Sequence[Sequence[int]]) -> list[list[float]]:
    """Return the log-probability of every token but the first of each sequence, at temperature 1.

    The padding is on the right, where a causal model does not attend to it.
    """
    longest = max(map(len, sequences))
    padded = [[*sequence, *[0] * (longest - len(sequence))] for sequence in sequences]
    input_ids = torch.tensor(padded, device=model.device)
    logits = model(input_ids=input_ids, use_cache=False).logits
    logprobs = logits[:, :-1].float().log_softmax(-1).gather(-1, input_ids[:, 1:, None])[..., 0]
    return [
        values[: len(sequence) - 1]
        for values, sequence in zip(logprobs.tolist(), sequences, strict=True)
    ]
