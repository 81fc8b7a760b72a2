"""The parameters of vLLM's requests, and the log-probabilities in its outputs."""

from __future__ import annotations

import hashlib
import struct
from typing import TYPE_CHECKING

from torchrl_ckpt.plugin_api.engines import Sampling

if TYPE_CHECKING:
    from vllm import SamplingParams
    from vllm.outputs import CompletionOutput


MIN_TEMPERATURE = 0.01
"""vLLM raises any smaller temperature to this, except 0 (greedy)."""


def sampling_params(sampling: Sampling, seed: int, sample: int) -> SamplingParams:
    """Return the parameters of one sample that is reported token by token.

    Raises `ValueError` for a temperature that vLLM would change.
    """
    if 0 < sampling.temperature < MIN_TEMPERATURE:
        raise ValueError(
            f"a temperature of {sampling.temperature} is not supported by vLLM: use 0 (greedy) or "
            f"at least {MIN_TEMPERATURE}"
        )
    from vllm import SamplingParams
    from vllm.sampling_params import RequestOutputKind

    return SamplingParams(
        max_tokens=sampling.max_tokens,
        temperature=sampling.temperature,
        top_p=sampling.top_p,
        top_k=sampling.top_k,
        seed=sample_seed(seed, sample),
        stop_token_ids=list(sampling.stop_token_ids),
        ignore_eos=True,  # the end token is among the stop tokens if it should end a completion
        logprobs=0,  # only that of the token drawn
        detokenize=False,
        output_kind=RequestOutputKind.DELTA,
    )


def scoring_params(next_token: int) -> SamplingParams:
    """Return the parameters that score each token of the prompt, and `next_token` after it.

    vLLM uses no cached prefix for such a request.
    """
    from vllm import SamplingParams
    from vllm.sampling_params import RequestOutputKind

    return SamplingParams(
        max_tokens=1,
        temperature=1.0,
        prompt_logprobs=0,
        logprob_token_ids=[next_token],
        ignore_eos=True,
        detokenize=False,
        output_kind=RequestOutputKind.FINAL_ONLY,
    )


def sample_seed(seed: int, sample: int) -> int:
    """Return the seed for sample `sample` of a prompt with the 64-bit `seed`.

    vLLM's own `n` would use seed + sample, so that prompts with neighbouring seeds share noise.
    """
    digest = hashlib.blake2b(struct.pack("<QQ", seed % 2**64, sample), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1  # vLLM's seeds are signed


def completion_logprobs(completion: CompletionOutput) -> list[float]:
    """Return the log-probability of each token."""
    assert completion.logprobs is not None
    return [
        entry[token].logprob
        for token, entry in zip(completion.token_ids, completion.logprobs, strict=True)
    ]
