"""Collectives for plain data. No object that is pickled crosses between ranks: whoever gets into a
collective must not get code executed."""

from __future__ import annotations

import json

import torch
import torch.distributed as dist
from torch.distributed import ProcessGroup

from torchrl_ckpt.plugin_api.plugin import Json


def gather_json(value: Json, group: ProcessGroup) -> list[Json]:
    """Return every rank's `value`, by rank. Collective over `group`, which carries CPU tensors.

    The values travel as JSON text in tensors of bytes; that of a single rank is taken through JSON
    as well, so that nothing depends on the number of ranks. Raises `RuntimeError` where a rank does
    not join, as every collective does.
    """
    encoded = json.dumps(value).encode()
    size = dist.get_world_size(group)
    if size == 1:
        return [json.loads(encoded)]
    text = torch.frombuffer(bytearray(encoded), dtype=torch.uint8)
    lengths = [torch.zeros(1, dtype=torch.int64) for _ in range(size)]
    dist.all_gather(lengths, torch.tensor([len(text)]), group=group)
    longest = max(int(length) for length in lengths)
    texts = [torch.empty(longest, dtype=torch.uint8) for _ in range(size)]
    dist.all_gather(texts, torch.nn.functional.pad(text, (0, longest - len(text))), group=group)
    return [
        json.loads(text[: int(length)].numpy().tobytes())
        for text, length in zip(texts, lengths, strict=True)
    ]
