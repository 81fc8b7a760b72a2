"""The last lines of a run: what was trained, which checkpoints there are, how to resume."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torchrl_ckpt.checkpoint.layout import Layout
from torchrl_ckpt.run import metrics
from torchrl_ckpt.run.attempt import Attempt


def last_row(rows: Sequence[dict[str, Any]], component: str) -> dict[str, Any]:
    """Return the newest row of `component`, which must have one."""
    return next(row for row in reversed(rows) if row["component"] == component)


def checkpoint_lines(attempt: Attempt) -> list[str]:
    """List the run's checkpoints, if checkpointing is on."""
    if attempt.ckpt is None:
        return []
    layout = Layout.of_run(attempt.output_dir, attempt.ckpt)
    steps = layout.steps()
    lines = [f"checkpoints: {', '.join(map(str, steps)) or 'none'} in {layout.root}"]
    if attempt.max_steps not in steps:
        log = attempt.run.log("trainer")
        lines.append(f"warning: step {attempt.max_steps} has no checkpoint; see {log}")
    return lines


def stopped_early(attempt: Attempt) -> str | None:
    """Say how to resume, if the trainer stopped before its last step on request; else None."""
    run = attempt.run
    steps = [row["step"] for row in metrics.read(run.metrics) if row["component"] == "trainer"]
    step = max(steps, default=0)
    if not run.stop.exists() or step >= attempt.max_steps:
        return None
    text = f"stopped after step {step} of {attempt.max_steps}, as requested"
    if attempt.ckpt is None:
        return f"{text}; nothing was saved, since checkpointing is off (`--ckpt`)"
    saved = Layout.of_run(attempt.output_dir, attempt.ckpt).steps()
    if step not in saved:
        newest = f"; the newest is step {saved[-1]}" if saved else ""
        return f"{text}, but that step could not be saved{newest}"
    return f"{text}; resume with `--ckpt.resume-step {step}`"
