"""The orchestrator's state: what it has generated, its position in the stream of problems, and its
part of a checkpoint, which carries the batches that are generated but not yet trained on."""

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
from torchrl_ckpt.run.rollout_store import METADATA, TENSORS, RolloutStore
from torchrl_ckpt.shuffled_stream import ShuffledStream

COMPONENT = "orchestrator"

_log = logging.getLogger(__name__)


@dataclass
class GenerationTotals:
    """The batches up to `step`, and the problems, samples and tokens in them."""

    step: int = 0
    problems: int = 0
    samples: int = 0
    tokens: int = 0


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
        for step, partial in requests_for(layout, COMPONENT):
            if self.generated.step != step + self._async_level:
                continue
            carried = range(step + 1, self.generated.step + 1)
            try:
                self._write_part(open_part(partial, COMPONENT), step, carried, rollouts)
            except OSError as error:
                _log.warning("cannot write the part of checkpoint step_%d: %s", step, error)
                refuse_part(partial, COMPONENT, str(error))

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
        `async_level`.
        """
        directory = layout.step(step) / COMPONENT
        if not directory.is_dir():
            raise CheckpointMismatch(
                f"{layout.step(step)} has no orchestrator part: it was not saved by a "
                "reinforcement learning run"
            )
        state = read_json(directory / STATE)
        if state["async_level"] != self._async_level:
            raise CheckpointMismatch(
                f"{directory} was saved with orchestrator.async_level = {state['async_level']}, "
                f"but the recipe sets {self._async_level}: the carried batches would not fit. "
                "Resume with the same value"
            )
        self.generated = GenerationTotals(**state["generated"])
        self.problems.load_state_dict(state["problems"])
        return [directory / "rollouts" / f"step_{carried}" for carried in state["carried"]]

    def _write_part(
        self, directory: Path, step: int, carried: Iterable[int], rollouts: RolloutStore
    ) -> None:
        records = [record_json(directory, STATE, self._to_json(step, carried))]
        for number in carried:
            for name in (METADATA, TENSORS):
                source = rollouts.path(number) / name
                records.append(_copied(source, directory, f"rollouts/step_{number}/{name}"))
        finish_part(directory, records)

    def _to_json(self, step: int, carried: Iterable[int]) -> Json:
        return {
            "step": step,
            "async_level": self._async_level,
            "generated": asdict(self.generated),
            "problems": self.problems.state_dict(),
            "carried": list(carried),
        }


def _copied(source: Path, root: Path, relative: str) -> FileRecord:
    with recorded_file(root, relative) as (stream, records):
        stream.write(source.read_bytes())
    return records[0]
