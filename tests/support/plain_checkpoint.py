"""Checkpoints of small plain files, committed as the trainer does it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from torchrl_ckpt.checkpoint.commit import commit, request, wait_for_parts
from torchrl_ckpt.checkpoint.layout import Layout
from torchrl_ckpt.checkpoint.part import finish_part, open_part
from torchrl_ckpt.plugin_api.durable_files import record_json, recorded_file

PARTS = ("trainer", "orchestrator")

Save = Callable[[int], Path]
"""Commits a checkpoint of a step and returns its directory."""


def write_part(partial: Path, component: str, data: bytes = b"weights") -> None:
    """Write and finish a component's part of a partial checkpoint."""
    directory = open_part(partial, component)
    with recorded_file(directory, "tensors/shard.bin") as (stream, records):
        stream.write(data)
    records.append(record_json(directory, "state.json", {"component": component}))
    finish_part(directory, records)


def commit_plain(layout: Layout, step: int) -> Path:
    """Commit a checkpoint whose parts hold the text `weights of STEP`."""
    partial = request(layout, step, PARTS)
    for component in PARTS:
        write_part(partial, component, f"weights of {step}".encode())
    records = wait_for_parts(partial, PARTS, timeout=1)
    return commit(layout, step, PARTS, records, {"world_size": 1})
