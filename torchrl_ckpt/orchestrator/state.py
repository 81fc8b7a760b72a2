"""The orchestrator's state: what it has generated, its position in the stream of problems, and its
part of a checkpoint, which carries the batches that are generated but not yet trained on."""

from __future__ import annotations

import logging
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import cast

from pydantic import ConfigDict

from torchrl_ckpt.checkpoint.layout import STATE, Layout
from torchrl_ckpt.checkpoint.part import open_part, refuse_part, requests_for
from torchrl_ckpt.checkpoint.rollout_part import ORCHESTRATOR, carried_directory, write_part
from torchrl_ckpt.checkpoint.stored_json import (
    Step,
    StoredModel,
    damage_unless_fit,
    read_stored,
)
from torchrl_ckpt.plugin_api.errors import CheckpointMismatch
from torchrl_ckpt.plugin_api.plugin import Json
from torchrl_ckpt.run.rollout_store import RolloutStore
from torchrl_ckpt.shuffled_stream import ShuffledStream, StreamPosition

_log = logging.getLogger(__name__)


@dataclass
class GenerationTotals:
    """The batches up to `step`, and the problems, samples and tokens in them."""

    step: int = 0
    problems: int = 0
    samples: int = 0
    tokens: int = 0


class _SavedState(StoredModel):
    """The orchestrator's part of a checkpoint, besides the batches and policies that it carries."""

    model_config = ConfigDict(extra="allow")

    step: Step
    async_level: Step
    generated: dict[str, Step]
    problems: dict[str, Step | None]
    carried: list[Step]


class OrchestratorState:
    """What a resume must restore."""

    def __init__(self, problems: ShuffledStream, *, async_level: int) -> None:
        self.generated = GenerationTotals()
        self.problems = problems
        self._async_level = async_level

    def answer_requests(self, layout: Layout, rollouts: RolloutStore) -> None:
        """Write the part of the checkpoint that is due now, if one was requested.

        Called when a policy has appeared and before anything is generated with it. A checkpoint of
        step N is requested before the policy of N is published, so when that appears exactly the
        batches up to N + async_level exist: those beyond N are carried in the part. A trainer that
        is ahead may have requested a later step as well, which is due later.
        """
        for step, partial in requests_for(layout, ORCHESTRATOR):
            if self.generated.step != step + self._async_level:
                continue
            carried = range(step + 1, self.generated.step + 1)
            try:
                try:
                    directory = open_part(partial, ORCHESTRATOR)
                except FileExistsError:
                    continue  # The run leaves, and the trainer has written the part itself.
                write_part(directory, step, self.to_json(), carried, rollouts)
            except OSError as error:
                _log.warning("cannot write the part of checkpoint step_%d: %s", step, error)
                refuse_part(partial, ORCHESTRATOR, str(error))

    def count(self, step: int, num_problems: int, num_samples: int, num_tokens: int) -> None:
        """Add the batch of `step`."""
        self.generated = GenerationTotals(
            step,
            self.generated.problems + num_problems,
            self.generated.samples + num_samples,
            self.generated.tokens + num_tokens,
        )

    def restore(self, layout: Layout, step: int) -> list[Path]:
        """Restore the state of checkpoint `step`; return the directories of the batches it carries.

        Raises `CheckpointMismatch` for a checkpoint without an orchestrator's part or with another
        `async_level`, and `CheckpointDamaged`.
        """
        directory = layout.step(step) / ORCHESTRATOR
        if not directory.is_dir():
            raise CheckpointMismatch(
                f"{layout.step(step)} has no orchestrator part: it was not saved by a "
                "reinforcement learning run"
            )
        state = read_stored(directory / STATE, _SavedState)
        if state.async_level != self._async_level:
            raise CheckpointMismatch(
                f"{directory} was saved with orchestrator.async_level = {state.async_level}, "
                f"but the recipe sets {self._async_level}: the carried batches would not fit. "
                "Resume with the same value"
            )
        with damage_unless_fit(directory / STATE):
            self.generated = GenerationTotals(**state.generated)
            self.problems.load_state_dict(cast(StreamPosition, state.problems))
        return [carried_directory(directory, "rollouts", number) for number in state.carried]

    def to_json(self) -> Json:
        """Return the state after the batches so far."""
        return {
            "async_level": self._async_level,
            "generated": asdict(self.generated),
            "problems": self.problems.state_dict(),
        }
