"""Which checkpoint a run resumes from, and whether a fresh run may start at all."""

from __future__ import annotations

import logging
import os
from typing import Literal

from torchrl_ckpt.checkpoint.layout import Layout
from torchrl_ckpt.checkpoint.manifest import Manifest
from torchrl_ckpt.checkpoint.verify import verify
from torchrl_ckpt.plugin_api.durable_files import fsync_directory, make_directory, write_json
from torchrl_ckpt.plugin_api.errors import CheckpointDamaged, CheckpointNotFound, RunDirectoryInUse

_log = logging.getLogger(__name__)


def choose(layout: Layout, step: int | Literal["latest"], *, quarantine: bool = True) -> Manifest:
    """Verify the checkpoint to resume from and return its manifest.

    `latest` is the newest good one; with `quarantine`, damaged ones above it are moved to
    quarantine (not those of another run). Raises `CheckpointNotFound` or `CheckpointDamaged` with
    the steps there are, and `CheckpointMismatch` for another format: a resume never falls back to a
    fresh start.
    """
    steps = list(layout.named())
    if step != "latest":
        if step not in steps:
            raise CheckpointNotFound(
                f"there is no checkpoint of step {step} in {layout.root}; {describe_steps(steps)}"
            )
        try:
            return verify(layout.step(step))
        except CheckpointDamaged as error:
            raise CheckpointDamaged(f"{error}; {describe_steps(steps)}") from None
    if not steps:
        raise CheckpointNotFound(f"there is no checkpoint in {layout.root} to resume from")
    damaged: dict[int, str] = {}
    for candidate in reversed(steps):
        try:
            manifest = verify(layout.step(candidate))
        except CheckpointDamaged as error:
            damaged[candidate] = str(error)
            continue
        if quarantine:
            for bad_step, reason in damaged.items():
                _quarantine(layout, bad_step, reason)
        return manifest
    reasons = "\n".join(f"  {reason}" for reason in damaged.values())
    raise CheckpointDamaged(f"no checkpoint in {layout.root} is good:\n{reasons}")


def quarantine_after(layout: Layout, step: int) -> None:
    """Move the steps after `step` to quarantine: the resumed run will do them again.

    Left in place, they would be newer than the next saves for retention and for `latest`.
    """
    for later in layout.named():
        if later > step:
            _quarantine(layout, later, f"the run was resumed from step {step}, before it")


def refuse_to_overwrite(layout: Layout) -> None:
    """Raise `RunDirectoryInUse` where a fresh run would write next to earlier checkpoints."""
    if steps := list(layout.named()):
        raise RunDirectoryInUse(
            f"{layout.root} already holds checkpoints ({describe_steps(steps)}). To resume from "
            f"one of them start it with `--ckpt.resume-step {steps[-1]}` (or `latest`) and without "
            "`--ckpt.resume-from`; for a new run choose another directory, or remove that one"
        )


def describe_steps(steps: list[int]) -> str:
    """Describe `steps` for a message about a step that is not among them."""
    if not steps:
        return "it holds none"
    if len(steps) == 1:
        return f"there is step {steps[0]}"
    return "there are steps " + ", ".join(map(str, steps))


def _quarantine(layout: Layout, step: int, reason: str) -> None:
    target = layout.quarantine(step)
    number = 1
    while target.exists():
        number += 1
        target = layout.quarantine(step).with_name(f"step_{step}.{number}")
    make_directory(target.parent)
    os.rename(layout.step(step), target)
    write_json(target / "reason.json", {"step": step, "reason": reason})
    fsync_directory(layout.root)
    _log.warning("checkpoint step_%d is now in %s: %s", step, target, reason)
