"""The orchestrator's state: its progress, its place among the problems, and its part of a
checkpoint, which carries the batches that are generated but not yet trained on."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

from torchrl_ckpt.checkpoint.layout import STATE, Layout
from torchrl_ckpt.checkpoint.part import finish_part, open_part, refuse_part, requests_for
from torchrl_ckpt.plugin_api.checkpoint_backends import FileRecord
from torchrl_ckpt.plugin_api.durable_files import read_json, record_json, recorded_file
from torchrl_ckpt.plugin_api.errors import CheckpointMismatch
from torchrl_ckpt.plugin_api.plugin import Json
from torchrl_ckpt.run.rollout_store import ABOUT, TENSORS, RolloutBatch, RolloutStore, read_batch
from torchrl_ckpt.shuffled_stream import ShuffledStream

COMPONENT = "orchestrator"

_log = logging.getLogger(__name__)


@dataclass
class Progress:
    """What was generated: batches up to `step`, with so many problems, samples and tokens."""

    step: int = 0
    problems: int = 0
    samples: int = 0
    tokens: int = 0


class OrchestratorState:
    """What must be the same after a resume."""

    def __init__(self, problems: ShuffledStream, *, async_level: int) -> None:
        self.progress = Progress()
        self.problems = problems
        self._async_level = async_level

    def answer_requests(self, layout: Layout, rollouts: RolloutStore) -> None:
        """Write the part of the checkpoint whose moment this is, if one was asked for.

        Called when a policy has appeared and before anything is generated with it. A checkpoint of
        step N was requested before the policy of N was published, so when that appears just the
        batches up to N + async_level exist: those beyond N are carried along. A trainer that is
        ahead may have asked for a later step as well, whose moment will come.
        """
        for step, partial in requests_for(layout, COMPONENT):
            if self.progress.step != step + self._async_level:
                continue
            carried = range(step + 1, self.progress.step + 1)
            try:
                self._write_part(open_part(partial, COMPONENT), step, carried, rollouts)
            except OSError as error:
                _log.warning("cannot write the part of checkpoint step_%d: %s", step, error)
                refuse_part(partial, COMPONENT, str(error))

    def restore(self, layout: Layout, step: int) -> list[RolloutBatch]:
        """Take up the state of checkpoint `step`; returns the batches that it carries."""
        directory = layout.step(step) / COMPONENT
        if not directory.is_dir():
            raise CheckpointMismatch(
                f"{layout.step(step)} has no part of an orchestrator: it is not one of a "
                "reinforcement learning run"
            )
        state = read_json(directory / STATE)
        if state["async_level"] != self._async_level:
            raise CheckpointMismatch(
                f"{directory} was saved with orchestrator.async_level = {state['async_level']}, "
                f"the recipe now says {self._async_level}: the batches under way would not fit. "
                "Resume with the same value"
            )
        self.progress = Progress(**state["generated"])
        self.problems.load_state_dict(state["problems"])
        return [
            read_batch(directory / "rollouts" / f"step_{carried}") for carried in state["carried"]
        ]

    def _write_part(
        self, directory: Path, step: int, carried: Iterable[int], rollouts: RolloutStore
    ) -> None:
        records = [record_json(directory, STATE, self._plain(step, carried))]
        for number in carried:
            for name in (ABOUT, TENSORS):
                source = rollouts.path(number) / name
                records.append(_copied(source, directory, f"rollouts/step_{number}/{name}"))
        finish_part(directory, records)

    def _plain(self, step: int, carried: Iterable[int]) -> Json:
        return {
            "step": step,
            "async_level": self._async_level,
            "generated": asdict(self.progress),
            "problems": self.problems.state_dict(),
            "carried": list(carried),
        }


def _copied(source: Path, root: Path, relative: str) -> FileRecord:
    with recorded_file(root, relative) as (stream, records):
        stream.write(source.read_bytes())
    return records[0]
