"""A run with real checkpoints of a tiny model, saved by the dcp backend without any training."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from tests.support.tiny_model import TOKENIZER
from torchrl_ckpt.checkpoint.commit import commit, request, wait_for_parts
from torchrl_ckpt.checkpoint.layout import MODEL, OPTIM, STATE, TENSORS, TRAINER, Layout
from torchrl_ckpt.checkpoint.part import finish_part, open_part
from torchrl_ckpt.config.section import PluginTable
from torchrl_ckpt.plugin_api.checkpoint_backends import FileRecord
from torchrl_ckpt.plugin_api.durable_files import record_json, write_json
from torchrl_ckpt.registry.loading import create
from torchrl_ckpt.run.metrics import MetricsLog

RECIPE: dict[str, Any] = {
    "max_steps": 6,
    "seed": 0,
    "ranks": 1,
    "model": {
        "type": "transformers",
        "architecture": "qwen3",
        "tokenizer": str(TOKENIZER),
        "config": {
            "num_hidden_layers": 1,
            "hidden_size": 16,
            "intermediate_size": 32,
            "num_attention_heads": 2,
            "num_key_value_heads": 2,
            "head_dim": 8,
        },
    },
    "loss": {"type": "cross_entropy"},
    "ckpt": {"directory": "checkpoints", "backend": {"type": "dcp"}, "resume_step": None},
}

LOSSES = {2: 0.3, 4: 0.2, 6: 0.9}
"""The steps of the checkpoints, with the trainer's `loss` in `metrics.jsonl`."""

NORM = "model.model.norm.weight"
"""The tensor that differs between the steps: step N holds 1 + N."""


def save_run(root: Path, losses: Mapping[int, float] = LOSSES) -> None:
    """Make the run in `root`, with a checkpoint of each step in `losses`."""
    root.mkdir()
    attempt = {
        "output_dir": str(root),
        "number": 1,
        "max_steps": RECIPE["max_steps"],
        "resume_step": None,
        "ckpt": {key: value for key, value in RECIPE["ckpt"].items() if key != "resume_step"},
    }
    write_json(root / "resolved.json", {"command": "sft", "attempt": attempt, "recipe": RECIPE})
    metrics = MetricsLog(root / "metrics.jsonl")
    layout = Layout(root / RECIPE["ckpt"]["directory"])
    with process_group(root.parent / "store"):
        for step, loss in losses.items():
            save_checkpoint(layout, step, _tensors(step))
            metrics.write("trainer", step, {"loss": loss})


def save_checkpoint(
    layout: Layout, step: int, tensors: Mapping[str, torch.Tensor], *, backend: str = "dcp"
) -> Path:
    """Commit a checkpoint of `tensors`, which dcp writes, though its recipe names `backend`.

    Call it within `process_group`.
    """
    partial = request(layout, step, [TRAINER])
    part = open_part(partial, TRAINER)
    writer = create("checkpoint_backends", PluginTable(type="dcp"))
    save = writer.save(tensors, part / TENSORS, dist.group.WORLD)
    records = [
        FileRecord(f"{TENSORS}/{file.path}", file.size, file.digest)
        for file in save.wait_written().files
    ]
    progress = {"step": step, "samples": 8 * step, "tokens": 64 * step}
    records.append(record_json(part, STATE, {"progress": progress, "optimizer": {"lr": 0.5}}))
    records.append(record_json(part, "rng/rank_0.json", {"torch": "ab" * 40 + f"{step:02x}"}))
    finish_part(part, records)
    plugin = {"name": backend, "distribution": "torchrl-ckpt", "version": "0.1.0"}
    metadata = {
        "progress": progress,
        "world_size": 1,
        "versions": {"torch": torch.__version__},
        "plugins": {"checkpoint_backends": plugin},
        "command": "sft",
        "recipe": {**RECIPE, "ckpt": {**RECIPE["ckpt"], "backend": {"type": backend}}},
    }
    records = wait_for_parts(partial, [TRAINER], timeout=1)
    return commit(layout, step, [TRAINER], records, metadata)


@contextmanager
def process_group(store: Path) -> Iterator[None]:
    """Join a gloo group of one rank, which meets in the file `store`."""
    dist.init_process_group("gloo", store=dist.FileStore(str(store), 1), rank=0, world_size=1)
    try:
        yield
    finally:
        dist.destroy_process_group()


def _tensors(step: int) -> dict[str, torch.Tensor]:
    """A model that differs between steps in `NORM` only, and an optimiser of one tensor."""
    torch.manual_seed(0)
    model = create("models", PluginTable(**RECIPE["model"])).build(pretrained=False)
    tensors = {MODEL + name: tensor for name, tensor in model.state_dict().items()}
    tensors[NORM] = torch.ones(16) + step
    return {**tensors, f"{OPTIM}state.norm.step": torch.tensor(7.0)}
