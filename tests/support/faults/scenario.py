"""The situations in which faults are made."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tests.support.faults.scenario_trials import Scenario
from tests.support.toy_training import SaveOptions


def save_scenarios(backend: str, options: Mapping[str, Any] | None = None) -> list[Scenario]:
    """Saves with every circumstance that leads through other code."""

    def how(keep: int | None = 2, resume_step: int | None = None) -> SaveOptions:
        return SaveOptions(backend, options or {}, keep, resume_step)

    return [
        Scenario("the first save", how(), committed=(), step=1),
        Scenario("a save, then a prune", how(), committed=(1, 2)),
        Scenario("a save with keep = 1", how(keep=1), committed=(1, 2)),
        Scenario("a step saved again", how(resume_step=2), committed=(1, 2, 3)),
        Scenario(
            "a save beside the leftovers of a killed one",
            how(),
            committed=(1, 2),
            leftovers={".step_3.partial": 2, ".step_1.deleting": 1},
        ),
    ]


def restart_scenarios(backend: str) -> list[Scenario]:
    """Restarts that have something to put right first."""
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
