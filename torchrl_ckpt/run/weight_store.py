"""Policies, from the trainer to the orchestrator: one Hugging Face directory per step.

`policy.json` beside the weights has their step and the *canary*: a few token sequences with the
log-probabilities that the trainer computed for them. An engine that returns other numbers does not
serve these weights. `digest` is of the weights themselves, for engines that can compute it, too.
"""

from __future__ import annotations

import errno
import json
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError
from safetensors import SafetensorError

from torchrl_ckpt.plugin_api.durable_files import read_json, write_json
from torchrl_ckpt.run.step_directories import StepDirectories, copy_carried

_METADATA = "policy.json"


@dataclass(frozen=True)
class Canary:
    """Sequences of token ids, and the log-probability of every token but the first of each, in nats
    and as the trainer computes it in `dtype`.

    The first ones are the same for every policy, so that policies can be compared. The others
    change, so that no server can know them before; the last one is long.
    """

    sequences: list[list[int]]
    logprobs: list[list[float]]
    dtype: str

    def cut(self, length: int) -> Canary:
        """Return it with the first `length` tokens (at least two) of each sequence."""
        return Canary(
            [sequence[:length] for sequence in self.sequences],
            [values[: length - 1] for values in self.logprobs],
            self.dtype,
        )


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


_POLICY = TypeAdapter(Policy)


class WeightStore:
    """A run's `weights`. A policy appears complete and durable, by one rename."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._directories = StepDirectories(root)

    def path(self, version: int) -> Path:
        return self._directories.path(version)

    def clear(self) -> None:
        """Delete the policies of earlier attempts, but not the final models."""
        self._directories.clear_leftovers()
        for version in self._directories.steps():
            if self._is_temporary(version):
                shutil.rmtree(self.path(version))

    def write(
        self, version: int, export: Callable[[Path], None], policy: Policy | None = None
    ) -> None:
        """Write the weights by `export`, and rename their directory once it is complete.

        Without a `policy` they are a final model, which is not served. Raises `OSError` where the
        disk refuses them.
        """
        with self._directories.new(version) as temporary:
            try:
                export(temporary)
            except SafetensorError as error:  # So it reports a full disk, too.
                raise OSError(errno.EIO, str(error), str(temporary)) from error
            if policy is not None:
                (temporary / _METADATA).write_text(json.dumps(asdict(policy)))

    def restore(self, directory: Path, version: int, attempt_id: str) -> None:
        """Copy the policy in `directory`, of an earlier attempt, as one of `attempt_id`.

        Raises `CheckpointDamaged` for a file that is none, and `OSError`.
        """
        with self._directories.new(version) as temporary:
            for path in sorted(directory.iterdir()):
                copy_carried(path, temporary / path.name)
            self._rewrite(temporary, attempt_id=attempt_id, last=False)

    def mark_last(self, version: int) -> None:
        """Say of a published policy that no later one follows."""
        self._rewrite(self.path(version), last=True)

    def read(self, version: int, attempt_id: str) -> Policy | None:
        """Return the policy of `version`; None while it does not exist or is another attempt's."""
        policy = self._read(version)
        return policy if policy is not None and policy.attempt_id == attempt_id else None

    def last(self, attempt_id: str) -> Policy | None:
        """Return the last policy of the training, or None while training has not ended."""
        for version in sorted(self._directories.steps(), reverse=True):
            policy = self.read(version, attempt_id)
            if policy is not None and policy.last:
                return policy
        return None

    def delete_before(self, version: int) -> None:
        """Delete the policies before `version`, which are no longer needed."""
        for earlier in self._directories.steps():
            if earlier < version and self._is_temporary(earlier):
                shutil.rmtree(self.path(earlier))

    def _rewrite(self, directory: Path, **changes: Any) -> None:
        content = read_json(directory / _METADATA)
        write_json(directory / _METADATA, content | changes)

    def _is_temporary(self, version: int) -> bool:
        """Whether it is a policy other than the last one of a training."""
        policy = self._read(version)
        return policy is not None and not policy.last

    def _read(self, version: int) -> Policy | None:
        """The policy of `version` and any attempt; None for a final model, or a torn file."""
        content = self._directories.read_json(version, _METADATA)
        if content is None:
            return None
        try:
            return _POLICY.validate_python(content)
        except ValidationError:
            self._directories.warn_unreadable(version, _METADATA)
            return None
