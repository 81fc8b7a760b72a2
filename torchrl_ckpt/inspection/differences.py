"""Compares the states in two checkpoints: what differs, and by how much."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from torchrl_ckpt.checkpoint.layout import PART, REQUEST, TENSORS, TRAINER
from torchrl_ckpt.checkpoint.manifest import Manifest
from torchrl_ckpt.checkpoint.stored_json import read_stored_json
from torchrl_ckpt.checkpoint.verify import verify
from torchrl_ckpt.inspection.stored_tensors import StoredTensors, batches
from torchrl_ckpt.plugin_api.checkpoint_backends import Advance, FileRecord, TensorDescription
from torchrl_ckpt.plugin_api.plugin import Json
from torchrl_ckpt.run.rollout_store import METADATA

ABSENT = "absent"
"""Stands for a value that is in only one of the two."""

_TENSOR_FILES = f"{TRAINER}/{TENSORS}/"
_ABOUT_THE_START = ("attempt_id", "weights_ids")
_MEASURED = ("seconds", "tokens_per_second")
_INTEGER_OF_SIZE = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
_PIECE_ELEMENTS = 64 * 1024


@dataclass(frozen=True)
class TensorDifference:
    """A tensor that is not bitwise identical.

    `max_abs` is the largest difference of an element, in the precision of the dtype (at least
    float32); `relative` is that divided by the largest element of the first tensor; both are NaN
    where a NaN is involved.
    """

    name: str
    num_different: int
    num_elements: int
    max_abs: float
    relative: float


@dataclass(frozen=True)
class ValueDifference:
    """Another difference: `a` and `b` are the values of the two checkpoints at `key`.

    These are shapes of a tensor, values in a JSON file, or digests of a file; `where` says which.
    """

    where: str
    key: str
    a: Json
    b: Json


@dataclass(frozen=True)
class Differences:
    """All differences. Without `tensors` and `values` the states are bitwise identical.

    `information` is what differs between any two starts, and says nothing about the state: which
    start has made a carried batch, what its weights were called, and how long it took.
    """

    tensors: list[TensorDifference]
    values: list[ValueDifference]
    information: list[ValueDifference]

    def __bool__(self) -> bool:
        return bool(self.tensors or self.values)


def compare(a: Path, b: Path, *, advance: Advance = lambda _: None) -> Differences:
    """Verify both checkpoints and compare their states: tensors, JSON, carried rollouts.

    What is only about the save (time, versions, recipe, request) is not compared, nor is the number
    of ranks over which the tensors are sharded. Raises `CheckpointDamaged` and what `StoredTensors`
    raises.
    """
    manifests = verify(a, advance=advance), verify(b, advance=advance)
    files = _state_files(manifests[0]), _state_files(manifests[1])
    found = list(_compare_files(a, b, *files))
    values = [value for value in found if not _is_information(value)]
    information = [value for value in found if _is_information(value)]
    tensors: list[TensorDifference] = []
    if _tensor_files(manifests[0]) != _tensor_files(manifests[1]):
        stored = StoredTensors(a, manifests[0]), StoredTensors(b, manifests[1])
        described = stored[0].describe(), stored[1].describe()
        shapes = _shapes(described[0]), _shapes(described[1])
        values += _compare_values("tensors", *shapes)
        common = [t for t in described[0] if shapes[0][t.name] == shapes[1].get(t.name)]
        for names in batches(common):
            read = [s.read(names) for s in stored]
            compared = (compare_tensors(name, read[0][name], read[1][name]) for name in names)
            tensors += [difference for difference in compared if difference is not None]
    return Differences(tensors, values, information)


def _is_information(difference: ValueDifference) -> bool:
    """Whether it is about the start that has made a carried batch, and not about the batch."""
    name = difference.key.rpartition(".")[2]
    return Path(difference.where).name == METADATA and (
        name in _ABOUT_THE_START or name.endswith(_MEASURED)
    )


def _tensor_files(manifest: Manifest) -> list[FileRecord]:
    return [file for file in manifest.files if file.path.startswith(_TENSOR_FILES)]


def _state_files(manifest: Manifest) -> dict[str, str]:
    """Return the digests of the files with state, by path, but for those of the tensors."""
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
            yield from _compare_values(
                path, _flat(read_stored_json(a / path)), _flat(read_stored_json(b / path))
            )
        else:
            yield difference


def _compare_values(
    where: str, a: Mapping[str, Json], b: Mapping[str, Json]
) -> Iterator[ValueDifference]:
    for key in sorted(a.keys() | b.keys()):
        in_a, in_b = a.get(key, ABSENT), b.get(key, ABSENT)
        if json.dumps(in_a) != json.dumps(in_b):  # In Python 1 == 1.0 == True.
            yield ValueDifference(where, key, in_a, in_b)


def _flat(value: Json, key: str = "") -> dict[str, Json]:
    """Flatten nested objects to dotted keys; a list stays one value."""
    if not isinstance(value, dict):
        return {key: value}
    return {
        inner_key: inner
        for name in value
        for inner_key, inner in _flat(value[name], f"{key}.{name}" if key else name).items()
    }


def _shapes(tensors: Iterable[TensorDescription]) -> dict[str, Json]:
    return {tensor.name: f"{tensor.dtype} {list(tensor.shape)}" for tensor in tensors}


def compare_tensors(name: str, a: torch.Tensor, b: torch.Tensor) -> TensorDifference | None:
    """Compare two tensors of one shape and dtype; return None if they are bitwise identical."""
    if a.numel() == 0:
        return None
    num_different = 0
    max_abs: list[float] = []
    largest: list[float] = []
    # In pieces that stay in the processor's cache, and with numpy, on one core: torch would share
    # them among threads, which takes longer than the work, above all where other programs run.
    pieces = [tensor.reshape(-1).split(_PIECE_ELEMENTS) for tensor in (a, b, _bits(a), _bits(b))]
    for values_a, values_b, bits_a, bits_b in zip(*pieces, strict=True):
        different = bits_a.numpy() != bits_b.numpy()
        if count := int(np.count_nonzero(different)):
            num_different += count
            max_abs.append(_max_difference(values_a, values_b, different))
        largest.append(_max_abs(_values(values_a)))
    if num_different == 0:
        return None
    with np.errstate(divide="ignore", invalid="ignore"):
        relative = np.max(max_abs) / np.max(largest)
    return TensorDifference(
        name,
        num_different=num_different,
        num_elements=a.numel(),
        max_abs=float(np.max(max_abs)),
        relative=float(relative),
    )


def _max_difference(a: torch.Tensor, b: torch.Tensor, different: NDArray[np.bool_]) -> float:
    """The largest difference of the elements that are `different`, in the precision of the dtype
    (at least float32). NaN if one of them is."""
    with np.errstate(over="ignore", invalid="ignore"):
        found = _max_abs(_values(a) - _values(b))
        if np.isfinite(found):
            return found
        # A NaN or an infinity in both, with the same bits, is no difference, and two large numbers
        # may be further apart than their dtype can say.
        return _max_abs((a.double().numpy() - b.double().numpy())[different])


def _max_abs(values: NDArray[Any]) -> float:
    return abs(float(np.maximum(values.max(), -values.min())))  # Faster than `abs` of each.


def _values(tensor: torch.Tensor) -> NDArray[Any]:
    if tensor.dtype in (torch.float32, torch.float64):
        return tensor.numpy()
    return (tensor.float() if tensor.is_floating_point() else tensor.double()).numpy()


def _bits(tensor: torch.Tensor) -> torch.Tensor:
    """View the elements as integers: -0.0 differs from 0.0, and a NaN equals itself."""
    return tensor.view(_INTEGER_OF_SIZE[tensor.itemsize])
