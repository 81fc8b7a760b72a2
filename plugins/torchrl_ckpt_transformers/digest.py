"""One digest for a set of named tensors, the same wherever they are."""

from __future__ import annotations

from collections.abc import Mapping

import torch
import xxhash


def digest_tensors(tensors: Mapping[str, torch.Tensor]) -> str:
    """The xxh3-128 (hexadecimal) of names, dtypes, shapes and bytes, in the order of the names."""
    hasher = xxhash.xxh3_128()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        hasher.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        hasher.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return hasher.hexdigest()
