"""Writes the model for others: every step's policy for the orchestrator, or the final model.

A policy comes with a canary and a digest, by which the orchestrator recognises a server that serves
these weights and no others.
"""

from __future__ import annotations

from pathlib import Path
from typing import cast

import torch
import torch.distributed as dist
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict

from torchrl_ckpt.plugin_api.models import DigestingModel, Model
from torchrl_ckpt.run.patience import Patience
from torchrl_ckpt.run.weight_store import Canary, Policy, WeightStore
from torchrl_ckpt.trainer.distributed import World
from torchrl_ckpt.trainer.packing import TrainSample, micro_batch

_CANARY_SEQUENCES = 4
_CANARY_LENGTH = 16
_CANARY_STRIDE = 7919  # A prime, so that the token ids are spread over the vocabulary.


class Publisher:
    """Gathers the sharded model on rank 0 and writes it to the weight store."""

    def __init__(
        self,
        plugin: Model,
        model: torch.nn.Module,
        store: WeightStore,
        *,
        attempt_id: str,
        world: World,
        patience: Patience,
    ) -> None:
        self._plugin = plugin
        self._model = model
        self._store = store
        self._attempt_id = attempt_id
        self._world = world
        self._patience = patience
        self._vocabulary: int | None = None

    def publish(self, version: int, *, last: bool) -> None:
        """Write the policy of step `version`; collective. `last`: no later one follows."""
        canary, state = self._canary(), self._gather()
        if self._world.is_rank_zero:
            plugin = self._plugin
            digest = plugin.digest(state) if isinstance(plugin, DigestingModel) else None
            self._write(version, state, Policy(version, self._attempt_id, last, canary, digest))
        dist.barrier()

    def mark_last(self, version: int) -> None:
        """Say of the policy of step `version`, which is published, that no later one follows."""
        if self._world.is_rank_zero:
            self._store.mark_last(version)

    def export_final(self, version: int) -> None:
        """Write the model of step `version` as a result that is not a policy; collective."""
        state = self._gather()
        if self._world.is_rank_zero:
            self._write(version, state, None)
        dist.barrier()

    def _gather(self) -> dict[str, torch.Tensor]:
        """Return the full tensors on CPU; they are complete on rank 0."""
        options = StateDictOptions(full_state_dict=True, cpu_offload=True)
        return cast(dict[str, torch.Tensor], get_model_state_dict(self._model, options=options))

    def _write(self, version: int, state: dict[str, torch.Tensor], policy: Policy | None) -> None:
        def export(directory: Path) -> None:
            self._plugin.export(state, directory)

        what = f"{'the final model' if policy is None else 'the policy'} of step {version}"
        self._patience.write(lambda: self._store.write(version, export, policy), what)

    @torch.no_grad()
    def _canary(self) -> Canary:
        if self._vocabulary is None:
            self._vocabulary = self._logits([[0]]).shape[-1]
        # Arbitrary tokens do: weights that differ only a little give other log-probabilities.
        token_ids = torch.arange(_CANARY_SEQUENCES * _CANARY_LENGTH) * _CANARY_STRIDE
        sequences = (token_ids % self._vocabulary).view(_CANARY_SEQUENCES, _CANARY_LENGTH)
        logits = self._logits(sequences.tolist())[:, :-1]
        logprobs = logits.float().log_softmax(-1)
        targets = sequences[:, 1:, None].to(logprobs.device)
        return Canary(
            sequences.tolist(),
            logprobs.gather(-1, targets).squeeze(-1).tolist(),
            str(logits.dtype).removeprefix("torch."),
        )

    def _logits(self, sequences: list[list[int]]) -> torch.Tensor:
        """Return `[sequence, position, vocabulary]` for sequences of equal length."""
        rows = [[TrainSample(sequence, [False] * len(sequence))] for sequence in sequences]
        batch = micro_batch(rows, len(sequences[0])).to(self._world.device)
        training = self._model.training
        self._model.eval()
        logits = self._model(input_ids=batch.input_ids, position_ids=batch.position_ids)
        self._model.train(training)
        return logits
