"""Which rank writes which piece of a state: DCP's plan, made once for all saves of the state."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.distributed as dist
from torch.distributed import ProcessGroup
from torch.distributed.checkpoint import DefaultSavePlanner
from torch.distributed.checkpoint.metadata import Metadata
from torch.distributed.checkpoint.planner import SavePlan

from torchrl_ckpt_dcp.recording_writer import RecordingWriter


@dataclass(frozen=True)
class PlannedSave:
    """This rank's share of a save. `metadata` speaks of the whole, and only rank 0 has it."""

    plan: SavePlan
    metadata: Metadata | None

    def pieces(self, state: Mapping[str, torch.Tensor]) -> list[torch.Tensor]:
        """The tensors that this rank writes, in the plan's order; they are `state`'s own memory."""
        planner = _planner(state, coordinates=False)
        pieces = [planner.resolve_data(item) for item in self.plan.items]
        assert all(isinstance(piece, torch.Tensor) for piece in pieces)
        return [piece.detach() for piece in pieces]  # type: ignore[union-attr]


def plan_save(state: Mapping[str, torch.Tensor], group: ProcessGroup) -> PlannedSave:
    """Plan saves of states with the form of `state`; collective over `group`.

    DCP plans anew with every save; the form of a training state never changes.
    """
    rank, size = dist.get_rank(group), dist.get_world_size(group)
    planner = _planner(state, coordinates=rank == 0)
    local_plans: list[SavePlan | None] = [None] * size
    dist.all_gather_object(local_plans, planner.create_local_plan(), group=group)
    # Every rank makes the global plan, from the same plans; so nothing is left to be sent.
    global_plan, metadata = planner.create_global_plan([p for p in local_plans if p is not None])
    # The directory does not matter to where in it the pieces go.
    global_plan = RecordingWriter(Path(), thread_count=1).prepare_global_plan(global_plan)
    return PlannedSave(planner.finish_plan(global_plan[rank]), metadata if rank == 0 else None)


def flat_planner() -> DefaultSavePlanner:
    """DCP's planner for states that are flat already."""
    return DefaultSavePlanner(flatten_state_dict=False, flatten_sharded_tensors=False)


def _planner(state: Mapping[str, torch.Tensor], *, coordinates: bool) -> DefaultSavePlanner:
    planner = flat_planner()
    planner.set_up_planner(dict(state), is_coordinator=coordinates)
    return planner
