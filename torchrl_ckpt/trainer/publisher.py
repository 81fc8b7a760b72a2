"""Publishes the policy after each step: full weights, and the canary and digest that tell them."""

from __future__ import annotations

from typing import cast

import torch
import torch.distributed as dist
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict

from torchrl_ckpt.plugin_api.models import DigestingModel, Model
from torchrl_ckpt.run.weight_store import Canary, Policy, WeightStore
from torchrl_ckpt.trainer.distributed import World
from torchrl_ckpt.trainer.packing import TrainSample, micro_batch

_NUM_SEQUENCES = 4
_SEQUENCE_LENGTH = 16
_STRIDE = 7919  # A prime, so that the sequences go all over the vocabulary.


class Publisher:
    """Gathers the sharded model and shows it to the other processes, whole."""

    def __init__(
        self,
        plugin: Model,
        model: torch.nn.Module,
        directory: WeightStore,
        *,
        attempt: int,
        world: World,
    ) -> None:
        self._plugin = plugin
        self._model = model
        self._directory = directory
        self._attempt = attempt
        self._world = world
        self._vocabulary: int | None = None

    def publish(self, version: int, *, last: bool) -> None:
        """Publish the policy of step `version`; collective."""
        canary, state = self._canary(), self._gathered()
        if self._world.leads:
            plugin = self._plugin
            digest = plugin.digest(state) if isinstance(plugin, DigestingModel) else None
            self._write(version, state, Policy(version, self._attempt, last, canary, digest))
        dist.barrier()

    def keep(self, version: int) -> None:
        """Write the model as a result, for nobody in particular; collective."""
        state = self._gathered()
        if self._world.leads:
            self._write(version, state, None)
        dist.barrier()

    def _gathered(self) -> dict[str, torch.Tensor]:
        options = StateDictOptions(full_state_dict=True, cpu_offload=True)
        return cast(dict[str, torch.Tensor], get_model_state_dict(self._model, options=options))

    def _write(self, version: int, state: dict[str, torch.Tensor], policy: Policy | None) -> None:
        self._directory.write(
            version, lambda directory: self._plugin.export(state, directory), policy
        )

    @torch.no_grad()
    def _canary(self) -> Canary:
        if self._vocabulary is None:
            self._vocabulary = self._logits([[0]]).shape[-1]
        # Arbitrary text does: weights that are only nearly right answer it otherwise.
        numbers = torch.arange(_NUM_SEQUENCES * _SEQUENCE_LENGTH) * _STRIDE % self._vocabulary
        sequences = numbers.view(_NUM_SEQUENCES, _SEQUENCE_LENGTH)
        logits = self._logits(sequences.tolist())[:, :-1]
        logprobs = logits.float().log_softmax(-1)
        targets = sequences[:, 1:, None].to(logprobs.device)
        return Canary(
            sequences.tolist(),
            logprobs.gather(-1, targets).squeeze(-1).tolist(),
            str(logits.dtype).removeprefix("torch."),
        )

    def _logits(self, sequences: list[list[int]]) -> torch.Tensor:
        """`[sequence, position, vocabulary]` for sequences of one length."""
        rows = [[TrainSample(sequence, [False] * len(sequence))] for sequence in sequences]
        batch = micro_batch(rows, len(sequences[0])).to(self._world.device)
        training = self._model.training
        self._model.eval()
        logits = self._model(input_ids=batch.input_ids, position_ids=batch.position_ids)
        self._model.train(training)
        return logits
