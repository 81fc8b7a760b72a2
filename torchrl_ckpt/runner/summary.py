"""What a run says when it ends."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torchrl_ckpt.checkpoint.layout import Layout
from torchrl_ckpt.observe import metrics
from torchrl_ckpt.recipe.schema import Checkpointing, Trainer
from torchrl_ckpt.run_directory import RunDirectory


def last_row(rows: Sequence[dict[str, Any]], component: str) -> dict[str, Any]:
    """The newest of a component's rows; there is one."""
    return next(row for row in reversed(rows) if row["component"] == component)


def checkpoint_line(run: RunDirectory, ckpt: Checkpointing | None) -> list[str]:
    """Which checkpoints there are now, if checkpointing is on."""
    if ckpt is None:
        return []
    layout = Layout(run.root / ckpt.directory)
    return [f"checkpoints: {', '.join(map(str, layout.steps()))} in {layout.root}"]


def stopped_early(run: RunDirectory, config: Trainer) -> str | None:
    """What to say where the trainer was asked to stop and did so before its last step."""
    steps = [row["step"] for row in metrics.read(run.metrics) if row["component"] == "trainer"]
    step = max(steps, default=0)
    if not run.stop.exists() or step >= config.max_steps:
        return None
    text = f"stopped after step {step} of {config.max_steps}, as asked"
    if config.ckpt is None:
        return f"{text}; nothing was saved, since checkpointing is off (`--ckpt`)"
    return f"{text}; go on from there with `--ckpt.resume-step {step}`"
