"""The last lines of a run: what was trained, which checkpoints there are, how to resume."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torchrl_ckpt.checkpoint.layout import Layout
from torchrl_ckpt.run import metrics
from torchrl_ckpt.run.attempt import Attempt

_STEPS_SHOWN = 10


def row_of(rows: Sequence[dict[str, Any]], component: str, step: int) -> dict[str, Any]:
    """Return `component`'s row of `step`; empty if a full disk has taken it."""
    found = (row for row in reversed(rows) if (row["component"], row["step"]) == (component, step))
    return next(found, {})


def missing_rows(rows: Sequence[dict[str, Any]], last_step: int) -> list[str]:
    """Say which of the trainer's steps up to `last_step` have no row, as after a full disk."""
    found = {row["step"] for row in rows if row["component"] == "trainer"}
    missing = [step for step in range(1, last_step + 1) if step not in found]
    if not missing:
        return []
    shown = ", ".join(map(str, missing[:_STEPS_SHOWN]))
    more = "" if len(missing) <= _STEPS_SHOWN else f" and {len(missing) - _STEPS_SHOWN} more"
    return [f"warning: metrics.jsonl has no row of the trainer for step {shown}{more}"]


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


def saved_line(attempt: Attempt) -> str | None:
    """Say what a run that has failed has saved; None where checkpointing is off."""
    if attempt.ckpt is None:
        return None
    saved = _saved_steps(attempt)
    step = _last_step(attempt, saved)
    if step == attempt.resume_step:
        return None  # What it has resumed from is known.
    if not saved:
        return f"step {step} was finished, and no checkpoint is saved" if step else None
    which = (
        f"step {step}, the last one that was finished, is saved"
        if step == saved[-1]
        else f"step {step} was finished, step {saved[-1]} is the newest that is saved"
    )
    return f"{which}: resume with `--ckpt.resume-step latest`"


def _saved_steps(attempt: Attempt) -> list[int]:
    if attempt.ckpt is None:
        return []
    return Layout.of_run(attempt.output_dir, attempt.ckpt).steps()


def _last_step(attempt: Attempt, saved: Sequence[int]) -> int:
    """The last step that the trainer has finished, 0 for none."""
    rows = metrics.read(attempt.run.metrics)
    # A full disk may have taken the last rows.
    return max([row["step"] for row in rows if row["component"] == "trainer"] + [*saved, 0])


def stopped_early(attempt: Attempt) -> str | None:
    """Say how to resume, if the trainer stopped before its last step on request; else None."""
    saved = _saved_steps(attempt)
    step = _last_step(attempt, saved)
    if not attempt.run.stop.exists() or step >= attempt.max_steps:
        return None
    if step == (attempt.resume_step or 0):
        return "stopped before the first step, as requested; there was nothing to save"
    text = f"stopped after step {step} of {attempt.max_steps}, as requested"
    if attempt.ckpt is None:
        return f"{text}; nothing was saved, since checkpointing is off (`--ckpt`)"
    if step not in saved:
        newest = f"; the newest is step {saved[-1]}" if saved else ""
        return f"{text}, but that step could not be saved{newest}"
    return f"{text}; resume with `--ckpt.resume-step {step}`"
