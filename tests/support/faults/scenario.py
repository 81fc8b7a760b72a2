"""The situations in which faults are injected."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from tests.support.toy_training import SaveOptions


@dataclass(frozen=True)
class Scenario:
    """A run with committed steps, and the task in which faults are injected: saving `step`, or a
    restart.

    `damaged` is a committed step with a flipped bit, which a restart has to quarantine. `leftovers`
    are directories left by earlier kills, by name, each made from a committed step: a copy of it,
    or the step itself if it was about to be replaced.
    """

    name: str
    options: SaveOptions
    committed: Sequence[int]
    task: Literal["save", "restart"] = "save"
    step: int = 3
    damaged: int | None = None
    leftovers: Mapping[str, int] = field(default_factory=dict)

    def __str__(self) -> str:
        return self.name


def save_scenarios(
    backend: str, backend_options: Mapping[str, Any] | None = None, ranks: int = 1
) -> list[Scenario]:
    """Return saves in every situation that takes another path through the code."""

    def options(keep: int | None = 2, resume_step: int | None = None) -> SaveOptions:
        return SaveOptions(backend, backend_options or {}, keep, resume_step, ranks=ranks)

    return [
        Scenario("the first save", options(), committed=(), step=1),
        Scenario("a save, then a prune", options(), committed=(1, 2)),
        Scenario("a save with keep = 1", options(keep=1), committed=(1, 2)),
        Scenario("a step saved again", options(resume_step=2), committed=(1, 2, 3)),
        Scenario(
            "a save beside the leftovers of a killed one",
            options(),
            committed=(1, 2),
            leftovers={".step_3.partial": 2, ".step_1.deleting": 1},
        ),
    ]


def restart_scenarios(backend: str) -> list[Scenario]:
    """Return restarts that have to repair something first."""
    return [
        Scenario(
            "a restart beside a damaged step",
            SaveOptions(backend),
            committed=(1, 2, 3),
            task="restart",
            damaged=3,
        ),
        Scenario(
            "a restart after a kill while a step was replaced",
            SaveOptions(backend),
            committed=(1, 2, 3),
            task="restart",
            leftovers={".step_3.partial": 2, ".step_1.deleting": 1, ".step_3.replaced": 3},
        ),
    ]
