"""Checkpoints of plain files, committed the way the trainer does it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from torchrl_ckpt.checkpoint.commit import commit, request, wait_for_parts
from torchrl_ckpt.checkpoint.layout import Layout
from torchrl_ckpt.checkpoint.part import finish_part, open_part
from torchrl_ckpt.plugin_api.durable_files import record_json, recorded_file

PARTS = ("trainer", "orchestrator")


def write_part(partial: Path, component: str, data: bytes = b"weights") -> None:
    directory = open_part(partial, component)
    with recorded_file(directory, "tensors/shard.bin") as (stream, records):
        stream.write(data)
    records.append(record_json(directory, "state.json", {"component": component}))
    finish_part(directory, records)


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    return Layout(tmp_path / "checkpoints")


@pytest.fixture
def save(layout: Layout) -> Callable[[int], Path]:
    """Commit a checkpoint of a step."""

    def save_step(step: int) -> Path:
        partial = request(layout, step, PARTS)
        for component in PARTS:
            write_part(partial, component, f"weights of {step}".encode())
        records = wait_for_parts(partial, PARTS, timeout=1)
        return commit(layout, step, PARTS, records, {"world_size": 1})

    return save_step
