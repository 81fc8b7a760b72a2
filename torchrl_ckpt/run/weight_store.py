"""Policies, from the trainer to the orchestrator: one Hugging Face directory a step.

`policy.json` beside the weights says which step they are of, and what they answer: the *canary*, a
few token sequences with the log-probabilities that the trainer computed for them. An engine that
gives other numbers does not serve these weights. `digest` is of the weights themselves, for an
engine that can tell the same.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

ABOUT = "policy.json"


@dataclass(frozen=True)
class Canary:
    """Sequences of token ids, and for each the log-probability of every token but the first, as
    the trainer computes it in `dtype`."""

    sequences: list[list[int]]
    logprobs: list[list[float]]
    dtype: str


@dataclass(frozen=True)
class Policy:
    """The weights after step `version`. `last` says that no later ones will come.

    `digest` is what `Engine.weights_digest` tells of the same tensors, or None where the model's
    plugin does not say (`DigestingModel`).
    """

    version: int
    attempt: int
    last: bool
    canary: Canary
    digest: str | None


class WeightStore:
    """A run's `weights`. Policies appear whole, by a rename."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def path(self, version: int) -> Path:
        return self.root / f"step_{version}"

    def clear(self) -> None:
        """Forget what earlier attempts left, save for the models that they ended with."""
        self.root.mkdir(parents=True, exist_ok=True)
        for unfinished in self.root.glob(".step_*.tmp"):
            shutil.rmtree(unfinished)
        for version in self._versions():
            if self._is_passing(version):
                shutil.rmtree(self.path(version))

    def write(
        self, version: int, export: Callable[[Path], None], policy: Policy | None = None
    ) -> None:
        """Let `export` write the weights, and show them under their version once they are whole.

        Without a `policy` they are a model to keep and nothing that is served.
        """
        temporary = self.root / f".step_{version}.tmp"
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        export(temporary)
        if policy is not None:
            (temporary / ABOUT).write_text(json.dumps(asdict(policy)))
        # Nobody may read a directory that is going: it moves out of sight first.
        replaced = self.root / f".step_{version}.replaced.tmp"
        shutil.rmtree(replaced, ignore_errors=True)  # of a run that was killed at the end of this
        if self.path(version).exists():
            os.rename(self.path(version), replaced)
        os.rename(temporary, self.path(version))
        shutil.rmtree(replaced, ignore_errors=True)

    def read(self, version: int, attempt: int) -> Policy | None:
        """The policy of `version`, or None while it is not there or another attempt's."""
        try:
            about = json.loads((self.path(version) / ABOUT).read_text())
        except FileNotFoundError:
            return None
        if about["attempt"] != attempt:
            return None
        return Policy(**{**about, "canary": Canary(**about["canary"])})

    def last(self, attempt: int) -> Policy | None:
        """The policy that ended the training, if it has ended."""
        for version in sorted(self._versions(), reverse=True):
            policy = self.read(version, attempt)
            if policy is not None and policy.last:
                return policy
        return None

    def forget(self, before: int) -> None:
        """Remove the policies before `before`: nobody will ask for them."""
        for version in self._versions():
            if version < before and self._is_passing(version):
                shutil.rmtree(self.path(version))

    def _is_passing(self, version: int) -> bool:
        """Whether it is a policy on the way and not a model that training ended with."""
        about = self.path(version) / ABOUT
        return about.exists() and not json.loads(about.read_text())["last"]

    def _versions(self) -> list[int]:
        return [int(directory.name.removeprefix("step_")) for directory in self.root.glob("step_*")]
