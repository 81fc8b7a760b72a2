"""Writes the model for others: every step's policy for the orchestrator, or the final model.

A policy comes with a canary and a digest, by which the orchestrator recognises a server that serves
these weights and no others.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import numpy as np
import torch
import torch.distributed as dist
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict

from torchrl_ckpt.plugin_api.errors import NotFinite
from torchrl_ckpt.plugin_api.models import DigestingModel, Model
from torchrl_ckpt.run.patience import Patience
from torchrl_ckpt.run.weight_store import Canary, Policy, WeightStore
from torchrl_ckpt.trainer.distributed import World
from torchrl_ckpt.trainer.packing import TrainSample, micro_batch

_FIXED_SEQUENCES = 4
_CHANGING_SEQUENCES = 3
_CANARY_LENGTH = 16
_CANARY_STRIDE = 7919  # A prime, so that the token ids are spread over the vocabulary.


@dataclass(frozen=True)
class CanaryOptions:
    """What the changing sequences of canaries depend on beside the step. `longest` is the length of
    the long one, in tokens: one row of a training pass, so it costs a small share of a step."""

    seed: int
    longest: int


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
        canary: CanaryOptions,
    ) -> None:
        self._plugin = plugin
        self._model = model
        self._store = store
        self._attempt_id = attempt_id
        self._world = world
        self._patience = patience
        self._canary_options = canary
        self._vocabulary: int | None = None

    def publish(self, version: int, *, last: bool) -> None:
        """Write the policy of step `version`; collective. `last`: no later one follows.

        Raises `NotFinite` on all ranks for a model whose numbers are not, and `WaitTimeout` on rank
        0 where the disk refuses the policy for too long.
        """
        canary, state = self._canary(version), self._gather()
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
        """Write the model of step `version` as a result that is not a policy; collective.

        Raises `WaitTimeout` as `publish` does.
        """
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
    def _canary(self, version: int) -> Canary:
        """Score sequences of arbitrary tokens: weights that differ only a little give other
        log-probabilities."""
        if self._vocabulary is None:
            self._vocabulary = self._logits([[0]]).shape[-1]
        fixed = np.arange(_FIXED_SEQUENCES * _CANARY_LENGTH) * _CANARY_STRIDE % self._vocabulary
        generator = np.random.default_rng([self._canary_options.seed, version])
        changing = generator.integers(self._vocabulary, size=(_CHANGING_SEQUENCES, _CANARY_LENGTH))
        longest = max(2, self._canary_options.longest)
        long = generator.integers(self._vocabulary, size=(1, longest))
        short = np.concatenate([fixed.reshape(_FIXED_SEQUENCES, _CANARY_LENGTH), changing])
        scored = [self._score(sequences.tolist()) for sequences in (short, long)]
        canary = Canary(
            [*short.tolist(), *long.tolist()],
            [logprobs for part, _ in scored for logprobs in part],
            scored[0][1],
        )
        if not all(map(math.isfinite, itertools.chain(*canary.logprobs))):
            raise NotFinite(
                f"the model of step {version} gives log-probabilities that are not finite, so it "
                "is not published. Resume from an earlier checkpoint, with a lower `optim.lr` for "
                "example"
            )
        return canary

    def _score(self, sequences: list[list[int]]) -> tuple[list[list[float]], str]:
        """The log-probability of every token but the first of each, and the dtype of the logits."""
        logits = self._logits(sequences)[:, :-1]
        logprobs = logits.float().log_softmax(-1)
        targets = torch.tensor(sequences, device=logprobs.device)[:, 1:, None]
        dtype = str(logits.dtype).removeprefix("torch.")
        return logprobs.gather(-1, targets).squeeze(-1).tolist(), dtype

    def _logits(self, sequences: list[list[int]]) -> torch.Tensor:
        """Return `[sequence, position, vocabulary]` for sequences of equal length."""
        rows = [[TrainSample(sequence, [False] * len(sequence))] for sequence in sequences]
        batch = micro_batch(rows, len(sequences[0])).to(self._world.device)
        training = self._model.training
        self._model.eval()
        logits = self._model(input_ids=batch.input_ids, position_ids=batch.position_ids)
        self._model.train(training)
        return logits
