"""Memory and speed of saving over many saves, and beside many committed steps:

    python -m benchmarks.many_saves

First `async_dcp` saves every one of 200 steps: memory and stall of the first half are compared with
those of the second, and every checkpoint is verified. Then a save, `ckpt ls` and the choice of the
step to resume from are timed in turn beside 20 and beside 2,000 committed steps.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from benchmarks.checkpoint import memory_of_tree
from tests.support.one_rank_world import one_rank_world
from tests.support.toy_training import SaveOptions, ToyTraining
from torchrl_ckpt.checkpoint.layout import MANIFEST, Layout
from torchrl_ckpt.checkpoint.manifest import write_manifest
from torchrl_ckpt.checkpoint.resume import choose
from torchrl_ckpt.checkpoint.verify import verify
from torchrl_ckpt.run import metrics
from torchrl_ckpt.trainer.distributed import World

_WARM_UP_SAVES = 20  # They allocate memory, so they are left out.
_REPEATS = 5


def every_step(run: Path, steps: int, world: World) -> None:
    """Save each of `steps` steps, and print memory, stall and the number of good checkpoints."""
    training = ToyTraining(run, world)
    checkpointer = training.checkpointer(SaveOptions("async_dcp", keep=None))
    checkpointer.prepare(training.trainer)
    memory = []
    for step in range(1, steps + 1):
        training.train_to(step)
        training.save(checkpointer)
        memory.append(memory_of_tree())
    checkpointer.finish()
    stalls = metrics.values_by_step(training.run.metrics, "checkpoint", "checkpoint/stall_seconds")
    checkpointer.close()
    # `verify` raises for a bad one.
    num_good = len([verify(training.layout.step(s)) for s in training.layout.steps()])
    half = (steps + _WARM_UP_SAVES) // 2
    early, late = memory[_WARM_UP_SAVES:half], memory[half:]
    print(f"{steps} steps, each saved: {num_good} good checkpoints")
    print(
        f"memory in MB: {statistics.median(early) / 1e6:.1f} in the first half, "
        f"{statistics.median(late) / 1e6:.1f} in the second"
    )
    in_order = [stalls[step] for step in sorted(stalls)]
    early_stalls, late_stalls = in_order[_WARM_UP_SAVES:half], in_order[half:]
    print(
        f"stall in ms, including the wait for the previous save: "
        f"{1000 * statistics.median(early_stalls):.1f} in the first half, "
        f"{1000 * statistics.median(late_stalls):.1f} in the second"
    )


def committed_steps(run: Path, count: int, world: World) -> None:
    """Create a run with `count` committed steps, which are hard links to one that was saved."""
    training = ToyTraining(run, world)
    checkpointer = training.checkpointer(SaveOptions("dcp", keep=None))
    training.train_to(1)
    training.save(checkpointer)
    checkpointer.close()
    source = training.layout.step(1)
    manifest = json.loads((source / MANIFEST).read_text())
    del manifest["seal"], manifest["format"]
    for step in range(2, count + 1):
        target = training.layout.step(step)
        subprocess.run(["cp", "-rl", str(source), str(target)], check=True)
        (target / MANIFEST).unlink()
        write_manifest(target, {**manifest, "step": step})


def timings(run: Path, count: int, world: World) -> dict[str, float]:
    """Return the seconds of a save, of `ckpt ls` and of the choice among `count` steps."""
    training = ToyTraining(run, world)
    checkpointer = training.checkpointer(SaveOptions("async_dcp", keep=None))
    checkpointer.prepare(training.trainer)
    step = training.layout.newest() or 0
    training.train_to(step + 1)
    training.save(checkpointer)
    checkpointer.finish()
    training.train_to(step + 2)
    began = time.perf_counter()
    training.save(checkpointer)
    checkpointer.finish()
    saved = time.perf_counter()
    checkpointer.close()
    listing = time.perf_counter()
    command = [str(Path(sys.executable).with_name("torchrl-ckpt")), "ckpt", "ls", str(run)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    listed = time.perf_counter()
    choose(Layout(run / "checkpoints"), "latest")
    chosen = time.perf_counter()
    return {"a save": saved - began, "ckpt ls": listed - listing, "resume": chosen - listed}


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--counts", type=int, nargs=2, default=(20, 2000))
    arguments = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as scratch, one_rank_world() as world:
        root = Path(scratch)
        every_step(root / "every_step", arguments.steps, world)
        found: dict[int, list[dict[str, float]]] = {count: [] for count in arguments.counts}
        for count in arguments.counts:
            committed_steps(root / str(count), count, world)
        for _ in range(_REPEATS):
            for count in arguments.counts:
                found[count].append(timings(root / str(count), count, world))
    few, many = arguments.counts
    print(f"| | beside {few} steps | beside {many:,} steps |\n|---|---:|---:|")
    for what in found[few][0]:
        cells = [
            f"{1000 * statistics.median(row[what] for row in found[count]):.0f} ms"
            for count in (few, many)
        ]
        print(f"| {what} | {' | '.join(cells)} |")
    return 0


if __name__ == "__main__":
    sys.exit(main())
