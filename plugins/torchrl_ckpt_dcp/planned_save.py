"""Which rank writes which tensor of a state: DCP's plan, which serves all saves of that state."""

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

from torchrl_ckpt_dcp.rank_exchange import gather_plans
from torchrl_ckpt_dcp.recording_writer import RecordingWriter


@dataclass(frozen=True)
class PlannedSave:
    """This rank's part of a save. `metadata` describes the whole save and is None off rank 0."""

    plan: SavePlan
    metadata: Metadata | None

    def tensors(self, state: Mapping[str, torch.Tensor]) -> DefaultSavePlanner:
        """Return a planner that finds the tensors of the plan in `state`."""
        return _planner(state, is_coordinator=False)

    def local_tensors(self, state: Mapping[str, torch.Tensor]) -> list[torch.Tensor]:
        """Return the tensors that this rank writes, in the plan's order; they share the memory of
        `state`."""
        planner = self.tensors(state)
        tensors = []
        for item in self.plan.items:
            tensor = planner.resolve_data(item)
            assert isinstance(tensor, torch.Tensor)
            tensors.append(tensor.detach())
        return tensors


def plan_save(state: Mapping[str, torch.Tensor], group: ProcessGroup) -> PlannedSave:
    """Plan the saves of every state with the names and shapes of `state`. Collective over `group`.

    The layout of a training state never changes, so that one plan serves all of its saves.
    """
    rank = dist.get_rank(group)
    planner = _planner(state, is_coordinator=rank == 0)
    local_plans = gather_plans(planner.create_local_plan(), group)
    # Every rank computes the global plan from the same local plans, so none has to be sent.
    global_plan, metadata = planner.create_global_plan(local_plans)
    # The plan names files relative to the checkpoint's directory, so any directory will do.
    global_plan = RecordingWriter(Path(), thread_count=1).prepare_global_plan(global_plan)
    return PlannedSave(planner.finish_plan(global_plan[rank]), metadata if rank == 0 else None)


def _planner(state: Mapping[str, torch.Tensor], *, is_coordinator: bool) -> DefaultSavePlanner:
    # The state is a flat mapping already.
    planner = DefaultSavePlanner(flatten_state_dict=False, flatten_sharded_tensors=False)
    planner.set_up_planner(dict(state), is_coordinator=is_coordinator)
    return planner
