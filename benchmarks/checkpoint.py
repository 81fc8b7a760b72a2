"""The cost of saving a training state, compared with its peers and with the limits of the machine:

    python -m benchmarks.checkpoint                      # about 0.75 GB, one rank
    python -m benchmarks.checkpoint --size 0.2 --ranks 2 --saves 5

Every method trains the same model in processes of its own and saves every few steps. The methods
run in turn, several times over, and each save is compared with a raw write made before or after it:
on a shared machine only ratios within one run mean anything. `torch_checkpointing` (Meta) is
included if it is installed. torchtitan's checkpointer calls `dcp.async_save` in thread or process
mode, so these lines are its numbers as well.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import math
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psutil
import torch
import torch.distributed as dist
from torch.distributed.fsdp import fully_shard

from benchmarks.save_method import SAVE_METHODS, SaveMethod
from torchrl_ckpt.config.trainer import OptimizerConfig, SchedulerConfig
from torchrl_ckpt.trainer.distributed import CollectiveLimits, World, join_world
from torchrl_ckpt.trainer.optimizer import build_optimizer, build_scheduler
from torchrl_ckpt.trainer.source import TrainBatch
from torchrl_ckpt.trainer.state import Progress, TrainingState

_WIDTH = 2048
_ROWS = 16
_STEPS_BETWEEN = 2
_PREPARATION_SECONDS = 6.0
_LOADS = 3
_RAW_WRITE_BYTES = 64 * 1024 * 1024
_OPTIONAL = {"torch_checkpointing"}


@dataclass
class Save:
    """One save, in seconds.

    `stall` is the time that the training thread waited, `durable` the time from the beginning of
    the save to its end, and `lost` the time by which the save prolonged training. `slowdown` is by
    how much longer a step during the save took, as a fraction (None if no step fell into it), and
    `raw` the time of a raw write of as many bytes.
    """

    stall: float
    durable: float
    lost: float
    slowdown: float | None
    raw: float = math.nan


@dataclass
class Result:
    """The measurements of one method on one rank. `saves` does not hold the first save."""

    name: str
    num_bytes: int
    step: float
    first_stall: float
    saves: list[Save]
    loads: list[float]
    extra_memory: int


class _Training:
    """Training of a model whose state has `size` GB."""

    def __init__(self, size: float, world: World) -> None:
        # Four bytes for a parameter and for each of Adam's two moments.
        layers = max(1, round(size * 1e9 / 12 / _WIDTH**2))
        model = torch.nn.Sequential(*(torch.nn.Linear(_WIDTH, _WIDTH) for _ in range(layers)))
        fully_shard(model, mesh=world.mesh)
        self._model = model
        self._optimizer = build_optimizer(model, OptimizerConfig(lr=1e-4))
        scheduler = build_scheduler(self._optimizer, SchedulerConfig(), 1_000_000)
        self._input = torch.randn(_ROWS, _WIDTH, device=world.device)
        self.state = TrainingState(model, self._optimizer, scheduler, _NoData(), Progress())

    def step(self, before_update: Callable[[], None] = lambda: None) -> float:
        """Do one step; return its seconds without those of `before_update`."""
        began = time.perf_counter()
        self._model(self._input).square().mean().backward()
        waiting_since = time.perf_counter()
        before_update()
        waited = time.perf_counter() - waiting_since
        self._optimizer.step()
        self._optimizer.zero_grad()
        self.state.progress.step += 1
        return time.perf_counter() - began - waited


class _NoData:
    provides: frozenset[str] = frozenset()

    def batch(self, step: int) -> TrainBatch:
        raise NotImplementedError

    def state_dict(self) -> Any:
        return {}

    def load_state_dict(self, state: Any) -> None:
        pass


def run_method(name: str, size: float, saves: int, directory: Path) -> Result:
    """Train and save in this process, one of the ranks that torchrun has started."""
    with join_world(threads=0, limits=CollectiveLimits(600.0, 600.0)) as world:
        training = _Training(size, world)
        training.step()
        num_bytes = sum(t.numel() * t.element_size() for t in training.state.tensors().values())
        raw = _RawWrite(directory / f"raw_{world.rank}", num_bytes // world.size)
        with _MemoryPeak() as before:
            for _ in range(3):
                training.step()
        method = SAVE_METHODS[name](training.state, directory / "checkpoints", world)
        method.prepare()
        # Preparation in the background has the time of these steps.
        began = time.perf_counter()
        while world.max(float(time.perf_counter() - began < _PREPARATION_SECONDS)):
            training.step()
        found: list[Save] = []
        baseline: list[float] = []
        with _MemoryPeak() as peak:
            for number in range(saves + 1):
                baseline += [training.step() for _ in range(_STEPS_BETWEEN)]
                usual = statistics.median(baseline[-10:])
                # Alternate the order, so that the disk has the same rest before save and raw write.
                raw_first = raw.write() if number % 2 else None
                if raw_first is not None:
                    baseline += [training.step() for _ in range(_STEPS_BETWEEN)]
                save = _measure_save(method, training, number, usual, world)
                if raw_first is None:
                    baseline += [training.step() for _ in range(_STEPS_BETWEEN)]
                save.raw = raw.write() if raw_first is None else raw_first
                found.append(save)
                if number > 0:
                    shutil.rmtree(directory / f"checkpoints/step_{number - 1}", ignore_errors=True)
                dist.barrier()
        loads = []
        for _ in range(_LOADS):
            dist.barrier()
            began = time.perf_counter()
            method.load(saves)
            dist.barrier()
            loads.append(time.perf_counter() - began)
        method.close()
        first, *others = found
        return Result(
            name,
            num_bytes,
            statistics.median(baseline),
            first.stall,
            others,
            loads,
            max(0, peak.value - before.value),
        )


def _measure_save(
    method: SaveMethod, training: _Training, number: int, usual: float, world: World
) -> Save:
    """Save once during training. `usual` is the median time of a step without a save."""
    began = time.perf_counter()
    pending = method.save(number)
    stall = time.perf_counter() - began
    during: list[float] = []

    def wait_staged() -> None:
        nonlocal stall
        waiting_since = time.perf_counter()
        pending.wait_staged()
        stall += time.perf_counter() - waiting_since

    # A step that began before the save was durable was slowed by it, at least in part. All ranks do
    # the same number of these and one more, before whose update every method has copied the state.
    while world.max(float(pending.durable_at is None)):
        during.append(training.step(wait_staged))
    training.step(wait_staged)
    pending.wait()
    lost = stall + sum(seconds - usual for seconds in during)
    slowdown = statistics.median(during) / usual - 1 if during else None
    assert pending.durable_at is not None
    return Save(stall, pending.durable_at - began, lost, slowdown)


class _RawWrite:
    """The limit of the machine: a plain write and fsync of as many bytes as a rank has."""

    def __init__(self, path: Path, num_bytes: int) -> None:
        self._path = path
        self._num_bytes = num_bytes
        self._data = torch.randint(0, 255, (_RAW_WRITE_BYTES,), dtype=torch.uint8).numpy()

    def write(self) -> float:
        began = time.perf_counter()
        with open(self._path, "wb", buffering=0) as file:
            remaining = self._num_bytes
            while remaining:
                remaining -= file.write(memoryview(self._data)[:remaining])
            os.fsync(file.fileno())
        seconds = time.perf_counter() - began
        self._path.unlink()
        return seconds


def machine_limits(num_bytes: int, directory: Path) -> dict[str, float]:
    """Return the seconds of a copy into memory in use and of a read of a cached file."""
    source = torch.zeros(num_bytes, dtype=torch.uint8)
    target = torch.zeros(num_bytes, dtype=torch.uint8)
    path = directory / "read"
    path.write_bytes(source.numpy().tobytes())
    buffer = bytearray(num_bytes)
    copies, reads = [], []
    for _ in range(5):
        began = time.perf_counter()
        target.copy_(source)
        copies.append(time.perf_counter() - began)
        began = time.perf_counter()
        with open(path, "rb", buffering=0) as file:
            file.readinto(buffer)
        reads.append(time.perf_counter() - began)
    path.unlink()
    return {"memcpy": statistics.median(copies), "raw read": statistics.median(reads)}


def memory_of_tree() -> int:
    """Return the bytes of this process and its children; shared memory counts once."""
    total = 0
    root = psutil.Process()
    for process in [root, *root.children(recursive=True)]:
        try:
            total += process.memory_full_info().pss
        except psutil.NoSuchProcess:
            continue
    return total


class _MemoryPeak:
    """Samples the memory, not so often that it slows anything down."""

    _PERIOD_SECONDS = 0.5

    def __init__(self) -> None:
        self.value = 0
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> _MemoryPeak:
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._end.set()
        self._thread.join()
        self.value = max(self.value, memory_of_tree())

    def _watch(self) -> None:
        self.value = memory_of_tree()
        while not self._end.wait(self._PERIOD_SECONDS):
            self.value = max(self.value, memory_of_tree())


def measure(name: str, arguments: argparse.Namespace, directory: Path) -> Result | str:
    """Run one method in processes of its own. Return its error message if it fails."""
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir(parents=True)
    command = [sys.executable, "-m", "torchrl_ckpt.launcher.torchrun", str(arguments.ranks)]
    command += [sys.executable, "-m", "benchmarks.checkpoint"]
    command += ["--method", name, "--size", str(arguments.size)]
    command += ["--saves", str(arguments.saves), "--directory", str(directory)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    result = directory / "result.json"
    if done.returncode != 0 or not result.exists():
        lines = done.stderr.strip().splitlines()
        return lines[-1] if lines else "it failed without a message"
    fields = json.loads(result.read_text())
    return Result(**{**fields, "saves": [Save(**save) for save in fields["saves"]]})


def table(results: dict[str, list[Result]]) -> list[str]:
    """The results as Markdown."""
    head = (
        "| | stall | of `dcp.save` | first stall | durable | of raw write + fsync | lost a save "
        "| a step during it | extra memory | load | of `dcp.load` |"
    )
    lines = [head, "|---" + "|---:" * 10 + "|"]
    sync = _median(save.stall for result in results["dcp.save"] for save in result.saves)
    plain_load = _median(load for result in results["dcp.save"] for load in result.loads)
    for name, found in results.items():
        saves = [save for result in found for save in result.saves]
        stall = _median(save.stall for save in saves)
        load = _median(load for result in found for load in result.loads)
        slow = [save.slowdown for save in saves if save.slowdown is not None]
        during = f"{100 * statistics.median(slow):+.0f} %" if slow else "-"
        cells = [
            f"{1000 * stall:.0f} ms",
            f"{100 * stall / sync:.1f} %",
            f"{1000 * _median(result.first_stall for result in found):.0f} ms",
            f"{_median(save.durable for save in saves):.2f} s",
            f"{_median(save.durable / save.raw for save in saves):.2f}",
            f"{_median(save.lost for save in saves):.2f} s",
            during,
            f"{_median(result.extra_memory for result in found) / 1e6:.0f} MB",
            f"{load:.2f} s",
            f"{load / plain_load:.2f}",
        ]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return lines


def _median(values: Any) -> float:
    return statistics.median(list(values))


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--size", type=float, default=0.75, help="of the state, in GB")
    parser.add_argument("--ranks", type=int, default=1)
    parser.add_argument("--saves", type=int, default=6, help="after the first, in each round")
    parser.add_argument("--rounds", type=int, default=2, help="of all methods in turn")
    parser.add_argument("--only", nargs="*", help="these methods, and dcp.save")
    parser.add_argument("--directory", type=Path, help="where to write (a temporary one)")
    parser.add_argument("--method", help=argparse.SUPPRESS)
    arguments = parser.parse_args(argv)
    if arguments.method:
        result = run_method(arguments.method, arguments.size, arguments.saves, arguments.directory)
        if os.environ["RANK"] == "0":
            (arguments.directory / "result.json").write_text(json.dumps(asdict(result)))
        return 0
    with tempfile.TemporaryDirectory(dir=arguments.directory) as scratch:
        _compare(arguments, Path(scratch))
    return 0


def _compare(arguments: argparse.Namespace, scratch: Path) -> None:
    chosen = [
        name
        for name in SAVE_METHODS
        if not arguments.only or name in arguments.only or name == "dcp.save"
    ]
    results: dict[str, list[Result]] = defaultdict(list)
    for number in range(arguments.rounds):
        for name in chosen:
            if name in _OPTIONAL and importlib.util.find_spec(name) is None:
                if number == 0:
                    print(f"{name}: left out, it is not installed", file=sys.stderr)
                continue
            print(f"round {number + 1}: {name}", file=sys.stderr, flush=True)
            result = measure(name, arguments, scratch / "run")
            if isinstance(result, str):
                print(f"{name}: {result}", file=sys.stderr)
            else:
                results[name].append(result)
    if "dcp.save" not in results:
        sys.exit("dcp.save failed, and the others are compared with it")
    sample = next(iter(results.values()))[0]
    share = sample.num_bytes // arguments.ranks
    limits = machine_limits(share, scratch)
    raw = _median(s.raw for found in results.values() for result in found for s in result.saves)
    print(
        f"{sample.num_bytes / 1e6:.0f} MB on {arguments.ranks} rank(s), a step of "
        f"{sample.step:.2f} s, {os.cpu_count()} cores, torch {torch.__version__}. "
        f"Of a rank's {share / 1e6:.0f} MB: "
        f"raw write + fsync {raw:.2f} s, raw read {limits['raw read']:.2f} s, copy into memory in "
        f"use {limits['memcpy']:.2f} s.\n"
    )
    print("\n".join(table(results)))


if __name__ == "__main__":
    sys.exit(main())
