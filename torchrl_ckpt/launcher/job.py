"""Runs the components of a settled start to their end, under a display."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from torchrl_ckpt.checkpoint.layout import TRAINER
from torchrl_ckpt.launcher.components import Component
from torchrl_ckpt.launcher.display.display import Display
from torchrl_ckpt.launcher.start import Start
from torchrl_ckpt.launcher.summary import saved_line
from torchrl_ckpt.launcher.supervisor import supervise
from torchrl_ckpt.launcher.watchdog import Watchdog
from torchrl_ckpt.plugin_api.errors import ComponentFailed
from torchrl_ckpt.run.run_lock import is_at_work

_COUNT_STEPS = ("trainer", "orchestrator")


@contextmanager
def finished_job(start: Start, components: Sequence[Component], *, title: str) -> Iterator[Display]:
    """Run `components` until all but the servers have ended; yield the display for a summary.

    Raises as `supervise` does.
    """
    attempt, run = start.attempt, start.attempt.run
    names = {component.name for component in components}
    if TRAINER in names:
        run.starting.touch()
    with Display(
        title,
        run,
        last_steps={name: attempt.max_steps for name in _COUNT_STEPS if name in names},
        start_step=attempt.resume_step or 0,
    ) as display:
        for note in start.notes:
            display.message(note, "warning")
        try:
            supervise(
                components,
                display=display,
                watchdog=Watchdog(run.heartbeats, start.stall_timeout),
                on_stop_requested=run.stop.touch,
                has_begun=lambda: (
                    not run.starting.exists()
                    and (TRAINER in names or is_at_work(run.root, TRAINER))
                ),
            )
        except ComponentFailed as failure:
            if (line := saved_line(attempt)) is not None:
                failure.args = (f"{failure}\n  {line}",)
            raise
        yield display
