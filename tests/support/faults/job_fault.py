"""Faults that hit a running job."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Literal

from tests.support.faults.job import Job, Victim
from tests.support.faults.shortage import SHORTAGES, Shortage

Moment = Literal["start", "step", "save"]
Effect = Literal["kill", "pause", "stop"] | Shortage
"""SIGKILL, as the kernel ends a process when memory is short; SIGSTOP and a little later SIGCONT;
SIGSTOP for good; or that the process or its disk runs out of something."""

EFFECTS: tuple[Effect, ...] = ("kill", "pause", "stop", *SHORTAGES)

_MAX_START_DELAY_SECONDS = 10.0
_MAX_DELAY_SECONDS = 0.3
_MAX_HELD_SECONDS = 4.0


@dataclass(frozen=True)
class JobFault:
    """`effect` on `victim`, `delay` seconds after the start of an attempt, the end of a step or the
    beginning of a save. A pause and a full disk last for `held` seconds."""

    victim: Victim
    moment: Moment
    delay: float
    effect: Effect = "kill"
    held: float = 0.0

    def __str__(self) -> str:
        held = f" for {self.held:.1f} s" if self.held else ""
        return f"{self.effect} of {self.victim} {self.delay:.3f} s after the {self.moment}{held}"

    @property
    def may_fail_the_attempt(self) -> bool:
        """Whether the attempt may end with an error after it."""
        return self.effect != "pause"

    @property
    def needs_small_disk(self) -> bool:
        return self.effect in ("disk", "inodes")

    @property
    def loses_rows(self) -> bool:
        """Whether a row of metrics may not be written."""
        return self.effect in ("disk", "inodes", "descriptors")


def draw_faults(job: Job, count: int, seed: int, effect: Effect = "kill") -> list[JobFault]:
    """Draw faults at random; every third comes just after the beginning of a save."""
    generator = random.Random(f"{job} {seed} {effect}")
    # Nobody watches the launcher: one that is stopped for good is killed in the end.
    victims = [victim for victim in job.victims if effect != "stop" or victim != "launcher"]
    faults = []
    for number in range(count):
        moment: Moment = "save"
        if number % 3:
            moment = generator.choice(("start", "step", "save"))
        longest = _MAX_START_DELAY_SECONDS if moment == "start" else _MAX_DELAY_SECONDS
        fault = JobFault(
            generator.choice(victims),
            moment,
            generator.uniform(0, longest),
            effect,
            generator.uniform(1.0, _MAX_HELD_SECONDS)
            if effect in ("pause", "disk", "inodes")
            else 0.0,
        )
        faults.append(fault)
    return faults
