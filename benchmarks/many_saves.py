"""Whether saving stays as it was in the beginning, however often one saves:

    python -m benchmarks.many_saves

First every one of 200 steps is saved by `async_dcp`: memory and stall of the first half are
compared with those of the second, and every checkpoint is verified. Then a save, `ckpt ls` and the
choice of the step to resume from are timed beside 20 and beside 2,000 committed steps, in turn.
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
from tests.support.toy_training import Rehearsal, SaveOptions, one_rank
from torchrl_ckpt.checkpoint.layout import MANIFEST, Layout
from torchrl_ckpt.checkpoint.manifest import write_manifest
from torchrl_ckpt.checkpoint.resume import choose
from torchrl_ckpt.checkpoint.verify import verify
from torchrl_ckpt.run import metrics
from torchrl_ckpt.trainer.distributed import World

_SETTLED = 20  # The first saves find their memory.
_REPEATS = 5


def every_step(run: Path, steps: int, world: World) -> None:
    """Save each of `steps`, and print what became of memory, stall and checkpoints."""
    job = Rehearsal(run, world)
    checkpoints = job.checkpoints(SaveOptions("async_dcp", keep=None))
    checkpoints.prepare(job.trainer)
    memory = []
    for step in range(1, steps + 1):
        job.train_to(step)
        job.save(checkpoints)
        memory.append(memory_of_tree())
    checkpoints.finish()
    stalls = metrics.values_by_step(job.run.metrics, "checkpoint", "checkpoint/stall_seconds")
    checkpoints.close()
    good = len([verify(job.layout.step(step)) for step in job.layout.steps()])  # or it raises
    half = (steps + _SETTLED) // 2
    early, late = memory[_SETTLED:half], memory[half:]
    print(f"{steps} steps, each saved: {good} good checkpoints")
    print(
        f"memory in MB: {statistics.median(early) / 1e6:.1f} in the first half, "
        f"{statistics.median(late) / 1e6:.1f} in the second"
    )
    in_order = [stalls[step] for step in sorted(stalls)]
    early_stalls, late_stalls = in_order[_SETTLED:half], in_order[half:]
    print(
        f"stall in ms, the wait for the save before included: "
        f"{1000 * statistics.median(early_stalls):.1f} in the first half, "
        f"{1000 * statistics.median(late_stalls):.1f} in the second"
    )


def committed_steps(run: Path, count: int, world: World) -> None:
    """Make a run with `count` committed steps: copies by link of one that was saved."""
    job = Rehearsal(run, world)
    checkpoints = job.checkpoints(SaveOptions("dcp", keep=None))
    job.train_to(1)
    job.save(checkpoints)
    checkpoints.close()
    source = job.layout.step(1)
    manifest = json.loads((source / MANIFEST).read_text())
    del manifest["seal"], manifest["format"]
    for step in range(2, count + 1):
        target = job.layout.step(step)
        subprocess.run(["cp", "-rl", str(source), str(target)], check=True)
        (target / MANIFEST).unlink()
        write_manifest(target, {**manifest, "step": step})


def timings(run: Path, count: int, world: World) -> dict[str, float]:
    """Seconds of one save, of one `ckpt ls` and of one choice among `count` steps."""
    job = Rehearsal(run, world)
    checkpoints = job.checkpoints(SaveOptions("async_dcp", keep=None))
    checkpoints.prepare(job.trainer)
    step = job.layout.newest() or 0
    job.train_to(step + 1)
    job.save(checkpoints)
    checkpoints.finish()
    job.train_to(step + 2)
    began = time.perf_counter()
    job.save(checkpoints)
    checkpoints.finish()
    saved = time.perf_counter()
    checkpoints.close()
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
    with tempfile.TemporaryDirectory() as scratch, one_rank() as world:
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
