"""What is asked of vLLM for one sample or one score, and how its answer is read."""

from __future__ import annotations

import hashlib
import struct
from typing import TYPE_CHECKING

from torchrl_ckpt.plugin_api.engines import Sampling

if TYPE_CHECKING:
    from vllm import SamplingParams
    from vllm.outputs import CompletionOutput


LEAST_TEMPERATURE = 0.01
"""vLLM takes this for any that is smaller, and only 0 for greedy."""


def sampling_params(sampling: Sampling, seed: int, sample: int) -> SamplingParams:
    """One sample, told of token by token. Raises `ValueError` for what vLLM would not follow."""
    if 0 < sampling.temperature < LEAST_TEMPERATURE:
        raise ValueError(
            f"a temperature of {sampling.temperature} is none of vLLM's: give 0 (greedy) or at "
            f"least {LEAST_TEMPERATURE}"
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
        ignore_eos=True,  # the end token is among the stop tokens if it is to end anything
        logprobs=0,  # of the token drawn, and of no other
        detokenize=False,
        output_kind=RequestOutputKind.DELTA,
    )


def scoring_params(next_token: int) -> SamplingParams:
    """The log-probability of each token of the prompt, and of `next_token` after it.

    vLLM reads no cached prefix for such a request.
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
    """A seed for sample `sample` of a prompt with the 64-bit `seed`.

    vLLM's own `n` would take seed + sample, so that prompts with neighbouring seeds share noise.
    """
    digest = hashlib.blake2b(struct.pack("<QQ", seed % 2**64, sample), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1  # vLLM's seeds are signed


def completion_logprobs(completion: CompletionOutput) -> list[float]:
    """Of each of its tokens."""
    assert completion.logprobs is not None
    return [
        entry[token].logprob
        for token, entry in zip(completion.token_ids, completion.logprobs, strict=True)
    ]
