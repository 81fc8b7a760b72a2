"""Policies, from the trainer to the orchestrator: one Hugging Face directory per step.

`policy.json` beside the weights has their step and the *canary*: a few token sequences with the
log-probabilities that the trainer computed for them. An engine that returns other numbers does not
serve these weights. `digest` is of the weights themselves, for engines that can compute it, too.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

_METADATA = "policy.json"


@dataclass(frozen=True)
class Canary:
    """Sequences of token ids, and the log-probability of every token but the first of each, in nats
    and as the trainer computes it in `dtype`."""

    sequences: list[list[int]]
    logprobs: list[list[float]]
    dtype: str


@dataclass(frozen=True)
class Policy:
    """The weights after step `version`. `last`: no later policy follows.

    `attempt_id` is that of the start that published it.

    `digest` is what `Engine.weights_digest` returns for the same tensors; None if the model's
    plugin does not compute it (`DigestingModel`).
    """

    version: int
    attempt_id: str
    last: bool
    canary: Canary
    digest: str | None


class WeightStore:
    """A run's `weights`. A policy appears complete, by one rename."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def path(self, version: int) -> Path:
        return self.root / f"step_{version}"

    def clear(self) -> None:
        """Delete the policies of earlier attempts, but not the final models."""
        self.root.mkdir(parents=True, exist_ok=True)
        for unfinished in self.root.glob(".step_*.tmp"):
            shutil.rmtree(unfinished)
        for version in self._versions():
            if self._is_temporary(version):
                shutil.rmtree(self.path(version))

    def write(
        self, version: int, export: Callable[[Path], None], policy: Policy | None = None
    ) -> None:
        """Write the weights by `export`, and rename their directory once it is complete.

        Without a `policy` they are a final model, which is not served.
        """
        temporary = self.root / f".step_{version}.tmp"
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        export(temporary)
        if policy is not None:
            (temporary / _METADATA).write_text(json.dumps(asdict(policy)))
        # A directory must not be read while it is deleted: it is renamed first.
        replaced = self.root / f".step_{version}.replaced.tmp"
        shutil.rmtree(replaced, ignore_errors=True)  # of a killed run
        if self.path(version).exists():
            os.rename(self.path(version), replaced)
        os.rename(temporary, self.path(version))
        shutil.rmtree(replaced, ignore_errors=True)

    def read(self, version: int, attempt_id: str) -> Policy | None:
        """Return the policy of `version`; None while it does not exist or is another attempt's."""
        try:
            metadata = json.loads((self.path(version) / _METADATA).read_text())
        except FileNotFoundError:
            return None
        if metadata.get("attempt_id") != attempt_id:
            return None
        return Policy(**{**metadata, "canary": Canary(**metadata["canary"])})

    def last(self, attempt_id: str) -> Policy | None:
        """Return the last policy of the training, or None while training has not ended."""
        for version in sorted(self._versions(), reverse=True):
            policy = self.read(version, attempt_id)
            if policy is not None and policy.last:
                return policy
        return None

    def delete_before(self, version: int) -> None:
        """Delete the policies before `version`, which are no longer needed."""
        for earlier in self._versions():
            if earlier < version and self._is_temporary(earlier):
                shutil.rmtree(self.path(earlier))

    def _is_temporary(self, version: int) -> bool:
        """Whether it is a policy other than the last one of a training."""
        metadata = self.path(version) / _METADATA
        return metadata.exists() and not json.loads(metadata.read_text())["last"]

    def _versions(self) -> list[int]:
        return [int(directory.name.removeprefix("step_")) for directory in self.root.glob("step_*")]
