"""The text of metrics and messages, which both screens show."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from torchrl_ckpt.run.progress import ProgressMessage

COMPONENT_WIDTH = 14

_SHOWN_METRICS = {
    "loss": "loss {:.4f}",
    "reward/mean": "reward {:.4f}",
    "lr": "lr {:.1e}",
    "tokens_per_second": "tokens/s {:.0f}",
    "policy_version": "policy {:.0f}",
    "checkpoint/stall_seconds": "stall {:.2f} s",
    "checkpoint/write_seconds": "write {:.2f} s",
    "checkpoint/commit_seconds": "commit {:.2f} s",
}


def metrics_text(row: Mapping[str, Any]) -> str:
    """Format the main values of a metrics row, such as `loss 0.6123  lr 5.0e-04`."""
    # NaN and infinities are strings in a row.
    shown = [text.format(float(row[name])) for name, text in _SHOWN_METRICS.items() if name in row]
    return "  ".join(shown)


def message_text(message: ProgressMessage) -> str:
    """Format a message with its local time and its component; the launcher's has no component."""
    clock = time.strftime("%H:%M:%S", time.localtime(message.time))
    source = f"{message.component}: " if message.component else ""
    warning = "warning: " if message.level == "warning" else ""
    return f"{clock} {source}{warning}{message.message}"
