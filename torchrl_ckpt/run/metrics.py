"""`metrics.jsonl`: every number of a run, one row for each component and step."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torchrl_ckpt.plugin_api import durable_files
from torchrl_ckpt.run import json_lines

Value = float | int | str


class MetricsLog:
    """Writes rows. Every process of a run has its own on the same file."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def write(self, component: str, step: int, values: Mapping[str, Value]) -> None:
        """Add `component`'s row for `step`.

        JSON has no word for NaN and the infinities: they are written as the strings `"nan"`,
        `"inf"` and `"-inf"`, which `float()` reads back.
        """
        row = {"component": component, "step": step, "time": round(time.time(), 3)}
        json_lines.append(
            self._path, row | {name: _writable(value) for name, value in values.items()}
        )


def read(path: Path) -> list[dict[str, Any]]:
    """All rows in the order they were written, less what a crash has torn."""
    return json_lines.Tail(path).read()


def values_by_step(path: Path, component: str, name: str) -> dict[int, float]:
    """The values of one of a component's metrics, by step; NaN and infinities as they were."""
    rows = [row for row in read(path) if row["component"] == component and name in row]
    return {row["step"]: float(row[name]) for row in rows}


def truncate_after(path: Path, step: int, *, backup: Path) -> None:
    """Drop the rows of all steps after `step`, which are about to be done again.

    A run that goes on from a checkpoint calls this before its processes start, so that each
    component has each step once; a run that starts afresh gives -1. Torn lines go too. If anything
    is dropped, the file as it was is kept at `backup`.
    """
    if not path.exists():
        return
    before = path.read_bytes()
    lines = before.splitlines(keepends=True)
    after = b"".join(
        line for line in lines if (row := json_lines.parse(line)) and row["step"] <= step
    )
    if after != before:
        durable_files.write_bytes(backup, before)
        durable_files.write_bytes(path, after)


def _writable(value: Value) -> Value:
    return str(float(value)) if isinstance(value, float) and not math.isfinite(value) else value
