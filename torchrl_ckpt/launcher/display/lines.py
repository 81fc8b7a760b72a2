"""The text of metrics and messages, which both screens show."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from torchrl_ckpt.run.progress import ProgressMessage

COMPONENT_WIDTH = 14

_SHOWN_METRICS = (
    ("loss", "loss", ".4f"),
    ("reward/mean", "reward", ".4f"),
    ("lr", "lr", ".1e"),
    ("tokens_per_second", "tokens/s", ".0f"),
    ("policy_version", "policy", ".0f"),
    ("checkpoint/stall_seconds", "seconds of stall", ".2f"),
    ("checkpoint/write_seconds", "to write", ".2f"),
    ("checkpoint/commit_seconds", "to commit", ".2f"),
)
"""Metric, label and format."""


def metrics_text(row: Mapping[str, Any]) -> str:
    """Format the main values of a metrics row, such as `loss 0.6123  lr 5.0e-04`."""
    shown = [(label, row[name], form) for name, label, form in _SHOWN_METRICS if name in row]
    return "  ".join(
        f"{label} {value if isinstance(value, str) else format(value, form)}"
        for label, value, form in shown
    )


def message_text(message: ProgressMessage) -> str:
    """Format a message with its local time and its component; the launcher's has no component."""
    clock = time.strftime("%H:%M:%S", time.localtime(message.time))
    source = f"{message.component}: " if message.component else ""
    warning = "warning: " if message.level == "warning" else ""
    return f"{clock} {source}{warning}{message.message}"
