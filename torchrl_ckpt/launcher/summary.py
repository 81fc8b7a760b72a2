"""What a run says when it ends."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torchrl_ckpt.checkpoint.layout import Layout
from torchrl_ckpt.config.ckpt import CheckpointConfig
from torchrl_ckpt.config.trainer import TrainerConfig
from torchrl_ckpt.run import metrics
from torchrl_ckpt.run.directory import RunDirectory


def last_row(rows: Sequence[dict[str, Any]], component: str) -> dict[str, Any]:
    """The newest of a component's rows; there is one."""
    return next(row for row in reversed(rows) if row["component"] == component)


def checkpoint_lines(run: RunDirectory, ckpt: CheckpointConfig | None, last_step: int) -> list[str]:
    """Which checkpoints there are now, if checkpointing is on."""
    if ckpt is None:
        return []
    layout = Layout(run.root / ckpt.directory)
    steps = layout.steps()
    lines = [f"checkpoints: {', '.join(map(str, steps)) or 'none'} in {layout.root}"]
    if last_step not in steps:
        lines.append(f"warning: step {last_step} has no checkpoint; see {run.log('trainer')}")
    return lines


def stopped_early(run: RunDirectory, config: TrainerConfig) -> str | None:
    """What to say where the trainer was asked to stop and did so before its last step."""
    steps = [row["step"] for row in metrics.read(run.metrics) if row["component"] == "trainer"]
    step = max(steps, default=0)
    if not run.stop.exists() or step >= config.max_steps:
        return None
    text = f"stopped after step {step} of {config.max_steps}, as asked"
    if config.ckpt is None:
        return f"{text}; nothing was saved, since checkpointing is off (`--ckpt`)"
    saved = Layout(run.root / config.ckpt.directory).steps()
    if step not in saved:
        newest = f"; the newest is step {saved[-1]}" if saved else ""
        return f"{text}, but that step could not be saved{newest}"
    return f"{text}; go on from there with `--ckpt.resume-step {step}`"
