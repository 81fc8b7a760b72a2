"""Which steps to save and which to keep: pure decisions, no files."""

from __future__ import annotations

from collections.abc import Collection


def is_due(step: int, *, interval: int | None, last: bool) -> bool:
    """Whether to save after `step`: every `interval` steps, and always after the last one."""
    return last or (interval is not None and step % interval == 0)


def expendable(
    steps: Collection[int],
    *,
    keep: int | None,
    keep_every: int | None,
    protected: Collection[int],
) -> list[int]:
    """The committed steps that retention may remove, oldest first.

    The newest step is never among them, nor is any of `protected` (the one resumed from).
    """
    if keep is None:
        return []
    ordered = sorted(steps)
    spared = {*ordered[-keep:], *protected}
    if keep_every is not None:
        spared |= {step for step in ordered if step % keep_every == 0}
    return [step for step in ordered if step not in spared]
