"""`metrics.jsonl`: all numbers of a run, one row per component and step."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torchrl_ckpt.plugin_api import durable_files
from torchrl_ckpt.plugin_api.untrusted_files import open_regular
from torchrl_ckpt.run import json_lines

Value = float | int | str

_log = logging.getLogger(__name__)


class MetricsLog:
    """Append rows to `path`; several processes of a run may write to the same file.

    Numbers are not worth a run: rows that a full disk refuses are kept, and written as soon as
    there is room.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._unwritten: list[dict[str, Any]] = []

    def write(self, component: str, step: int, values: Mapping[str, Value]) -> None:
        """Append `component`'s row for `step`.

        JSON cannot represent NaN and infinities: they are written as the strings `"nan"`, `"inf"`
        and `"-inf"`, which `float()` parses.
        """
        row = {"component": component, "step": step, "time": round(time.time(), 3)}
        self._unwritten.append(row | {name: _to_json(value) for name, value in values.items()})
        self.flush()

    def flush(self) -> None:
        """Write the rows that could not be written so far, or say how many they are."""
        try:
            while self._unwritten:
                json_lines.append(self._path, self._unwritten[0])
                self._unwritten.pop(0)
        except OSError as error:
            _log.warning(
                "cannot write to %s: %s; %d rows are kept until there is room, and lost if the run "
                "ends before",
                self._path,
                error.strerror,
                len(self._unwritten),
            )


def read(path: Path) -> list[dict[str, Any]]:
    """Return all rows in the order of writing, without lines that are none.

    Raises `OSError` for a link or a FIFO in place of the file.
    """
    return [row for row in json_lines.Tail(path).read() if _is_row(row)]


def values_by_step(path: Path, component: str, name: str) -> dict[int, float]:
    """Return the values of a component's metric `name` by step, NaN and infinities included."""
    rows = [row for row in read(path) if row["component"] == component]
    values = {row["step"]: _number(row.get(name)) for row in rows}
    return {step: value for step, value in values.items() if value is not None}


def truncate_after(path: Path, step: int, *, backup: Path) -> None:
    """Remove the rows of all steps after `step`, and lines that are no rows.

    Called before the processes of a resumed run start, so that each component has each step once;
    a fresh run gives -1. If anything is removed, the previous file is copied to `backup`.
    """
    if not path.exists():
        return
    with open_regular(path) as file:
        before = file.readall()
    lines = before.splitlines(keepends=True)
    after = b"".join(
        line
        for line in lines
        if (row := json_lines.parse(line)) and _is_row(row) and row["step"] <= step
    )
    if after != before:
        durable_files.write_bytes(backup, before)
        durable_files.write_bytes(path, after)


def _is_row(row: Mapping[str, Any]) -> bool:
    return isinstance(row.get("component"), str) and type(row.get("step")) is int


def _number(value: Any) -> float | None:
    try:
        return float(value)
    except (TypeError, ValueError, OverflowError):
        return None


def _to_json(value: Value) -> Value:
    return str(float(value)) if isinstance(value, float) and not math.isfinite(value) else value
