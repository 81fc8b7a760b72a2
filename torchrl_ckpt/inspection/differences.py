"""What differs between the states that two checkpoints hold, and by how much."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from torchrl_ckpt.checkpoint.layout import PART, REQUEST, TENSORS, TRAINER
from torchrl_ckpt.checkpoint.manifest import Manifest
from torchrl_ckpt.checkpoint.verify import verify
from torchrl_ckpt.inspection.tensors import StoredTensors
from torchrl_ckpt.plugin_api.checkpoint_backends import Advance, FileRecord, TensorDescription
from torchrl_ckpt.plugin_api.durable_files import read_json
from torchrl_ckpt.plugin_api.plugin import Json

ABSENT = "absent"
"""Stands for a value that one of the two does not have."""

_TENSOR_FILES = f"{TRAINER}/{TENSORS}/"
_SAME_SIZE = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


@dataclass(frozen=True)
class TensorDifference:
    """A tensor that is not the same to the bit.

    `max_abs` is the largest difference of an element, `relative` that divided by the largest
    element of the first; NaN where a NaN is involved.
    """

    name: str
    num_different: int
    num_elements: int
    max_abs: float
    relative: float


@dataclass(frozen=True)
class ValueDifference:
    """Something else that is not the same: `a` and `b` are what the two have at `key`.

    That is the shape of a tensor, a value in a JSON file, or a file's digest.
    """

    where: str
    key: str
    a: Json
    b: Json


@dataclass(frozen=True)
class Differences:
    """Nothing in either means: the same state, to the bit."""

    tensors: list[TensorDifference]
    values: list[ValueDifference]

    def __bool__(self) -> bool:
        return bool(self.tensors or self.values)


def compare(a: Path, b: Path, *, advance: Advance = lambda _: None) -> Differences:
    """Verify both checkpoints and compare the state in them: tensors, JSON, carried rollouts.

    What only tells of the saving (time, versions, recipe, request) does not count, nor does on how
    many ranks the tensors were sharded.
    """
    manifests = verify(a, advance=advance), verify(b, advance=advance)
    files = _state_files(manifests[0]), _state_files(manifests[1])
    values = list(_compare_files(a, b, *files))
    tensors: list[TensorDifference] = []
    if _tensor_files(manifests[0]) != _tensor_files(manifests[1]):
        stored = StoredTensors(a, manifests[0]), StoredTensors(b, manifests[1])
        shapes = _shapes(stored[0].describe()), _shapes(stored[1].describe())
        values += _compare_values("tensors", *shapes)
        common = [name for name in shapes[0] if shapes[0][name] == shapes[1].get(name)]
        tensors = list(_compare_tensors(*stored, common))
    return Differences(tensors, values)


def _tensor_files(manifest: Manifest) -> list[FileRecord]:
    return [file for file in manifest.files if file.path.startswith(_TENSOR_FILES)]


def _state_files(manifest: Manifest) -> dict[str, str]:
    """The digests of the files, but for the tensors', that hold state."""
    return {
        file.path: file.digest
        for file in manifest.files
        if not file.path.startswith(_TENSOR_FILES) and Path(file.path).name not in (PART, REQUEST)
    }


def _compare_files(
    a: Path, b: Path, files_a: Mapping[str, str], files_b: Mapping[str, str]
) -> Iterator[ValueDifference]:
    for difference in _compare_values("files", files_a, files_b):
        path = difference.key
        if path in files_a and path in files_b and path.endswith(".json"):
            yield from _compare_values(path, _flat(read_json(a / path)), _flat(read_json(b / path)))
        else:
            yield difference


def _compare_values(
    where: str, a: Mapping[str, Json], b: Mapping[str, Json]
) -> Iterator[ValueDifference]:
    for key in sorted(a.keys() | b.keys()):
        one, other = a.get(key, ABSENT), b.get(key, ABSENT)
        if json.dumps(one) != json.dumps(other):  # In Python 1 == 1.0 == True.
            yield ValueDifference(where, key, one, other)


def _flat(value: Json, key: str = "") -> dict[str, Json]:
    """Nested objects as dotted keys; a list stays one value."""
    if not isinstance(value, dict):
        return {key: value}
    return {
        deeper: found
        for name in value
        for deeper, found in _flat(value[name], f"{key}.{name}" if key else name).items()
    }


def _shapes(tensors: Iterable[TensorDescription]) -> dict[str, Json]:
    return {tensor.name: f"{tensor.dtype} {list(tensor.shape)}" for tensor in tensors}


def _compare_tensors(
    a: StoredTensors, b: StoredTensors, names: Iterable[str]
) -> Iterator[TensorDifference]:
    for name in names:  # One by one: two whole checkpoints may be more than the memory holds.
        one, other = a.read([name])[name], b.read([name])[name]
        different = _bits(one) != _bits(other)
        if different.any():
            # Where the bits are the same there is no difference, not even of NaN and NaN.
            max_abs = (one.double() - other.double())[different].abs().max()
            yield TensorDifference(
                name,
                num_different=int(different.sum()),
                num_elements=one.numel(),
                max_abs=max_abs.item(),
                relative=(max_abs / one.double().abs().max()).item(),
            )


def _bits(tensor: torch.Tensor) -> torch.Tensor:
    """The same elements as whole numbers: -0.0 is not 0.0, and a NaN is itself."""
    return tensor.view(_SAME_SIZE[tensor.itemsize])
