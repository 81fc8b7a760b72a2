"""What `ckpt diff` costs beside reading both checkpoints:

    python -m benchmarks.diff

Two checkpoints of 320 MB are compared, once as 800 small tensors and once as 8 large ones. All
elements differ, and then none. Prints the shortest of several times, with the checkpoints in the
page cache and not, and the ratio of each to reading both checkpoints.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch

from tests.support.saved_run import process_group, save_checkpoint
from torchrl_ckpt.checkpoint.layout import Layout
from torchrl_ckpt.checkpoint.manifest import read_manifest
from torchrl_ckpt.inspection.differences import compare
from torchrl_ckpt.inspection.stored_tensors import StoredTensors, batches

_ELEMENTS = 80_000_000


def read(directory: Path) -> None:
    stored = StoredTensors(directory, read_manifest(directory))
    for names in batches(stored.describe()):
        stored.read(names)


def drop_from_cache(directory: Path) -> None:
    for path in directory.rglob("*"):
        if path.is_file():
            with open(path, "rb") as file:
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def shortest(
    repeats: int, prepare: Callable[[], None], *actions: Callable[[], object]
) -> list[float]:
    """The shortest time of each of `actions`, in seconds, of `repeats` rounds."""
    times: list[list[float]] = [[] for _ in actions]
    for _ in range(repeats):
        for action, its_times in zip(actions, times, strict=True):
            prepare()
            began = time.perf_counter()
            action()
            its_times.append(time.perf_counter() - began)
    return [min(its_times) for its_times in times]


def measure(root: Path, num_tensors: int, repeats: int) -> None:
    """Save, compare, and print a line for `num_tensors` tensors."""
    generator = torch.Generator().manual_seed(0)
    saved = []
    with process_group(root / "store"):
        for name, seed in (("a", 0), ("b", 1), ("copy_of_a", 0)):
            generator.manual_seed(seed)
            size = _ELEMENTS // num_tensors
            tensors = {
                f"model.{number}": torch.randn(size, generator=generator)
                for number in range(num_tensors)
            }
            saved.append(save_checkpoint(Layout(root / name), 1, tensors))
    a, b, copy = saved
    assert len(compare(a, b).tensors) == num_tensors
    assert not compare(a, copy).tensors
    actions = (lambda: (read(a), read(b)), lambda: compare(a, b), lambda: compare(a, copy))
    for place, prepare in (
        ("in the page cache", lambda: None),
        ("on the disk", lambda: drop_from_cache(root)),
    ):
        reading, different, equal = shortest(repeats, prepare, *actions)
        print(
            f"{num_tensors} tensors {place}: reading both {reading:.2f} s; "
            f"diff of different ones {different:.2f} s, ratio {different / reading:.2f}; "
            f"of equal ones {equal:.2f} s, ratio {equal / reading:.2f}",
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=5)
    repeats = parser.parse_args().repeats
    for num_tensors in (800, 8):
        with tempfile.TemporaryDirectory() as directory:
            measure(Path(directory), num_tensors, repeats)


if __name__ == "__main__":
    main()
