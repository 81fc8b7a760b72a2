"""A digest of named tensors, independent of their device."""

from __future__ import annotations

from collections.abc import Mapping

import torch
import xxhash


def digest_tensors(tensors: Mapping[str, torch.Tensor]) -> str:
    """Return the xxh3-128 (hexadecimal) of names, dtypes, shapes and bytes, in the order of the
    names, as `KIND:HEX`: `xxh3-128 of float32:...`."""
    hasher = xxhash.xxh3_128()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        hasher.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        hasher.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    dtypes = sorted({str(tensor.dtype).removeprefix("torch.") for tensor in tensors.values()})
    return f"xxh3-128 of {' and '.join(dtypes)}:{hasher.hexdigest()}"
