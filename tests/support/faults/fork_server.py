"""A fork server that saves and restarts as a job does, in a new process each time.

    python -m tests.support.faults.fork_server

Importing torch takes seconds, so it is done once, here. Each line of standard input is a task as
JSON. The server answers with the process ids of a child that has prepared everything and waits and
of the child's workers, or with null if the preparation failed. The next line lets the child
continue, and the second answer says how it ended. Between the two, a fault can be injected. The
client is `tests.support.faults.saver`.
"""

from __future__ import annotations

import ctypes
import json
import logging
import os
import sys
import tempfile
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import torch

from tests.support.faults.forked_processes import ForkedRanks, fork_workers
from tests.support.one_rank_world import world_of_ranks
from tests.support.toy_training import SaveOptions, ToyTraining, resumed_attempt
from torchrl_ckpt.plugin_api.errors import UserError
from torchrl_ckpt.registry.loading import load_plugin
from torchrl_ckpt.run import logs


@dataclass(frozen=True)
class Task:
    """What a child does as one of `options.ranks` ranks, which meet in the file `meeting`."""

    run: Path
    options: SaveOptions
    steps: list[int]
    meeting: Path
    rank: int


def save(task: Task, wait: Callable[[], None]) -> None:
    """Train through `steps` and save a checkpoint after each."""
    run, options, steps = task.run, task.options, task.steps
    with world_of_ranks(task.rank, options.ranks, task.meeting) as world:
        training = ToyTraining(run, world)
        _redirect_stderr(training.run.log("trainer"))
        checkpointer = training.checkpointer(options)
        checkpointer.prepare(training.trainer)
        training.train_to(steps[0])
        wait()
        for step in steps:
            training.train_to(step)
            training.save(checkpointer)
        checkpointer.close()


def restart(task: Task, wait: Callable[[], None]) -> None:
    """Begin another attempt from the latest checkpoint."""
    logging.disable()
    wait()
    with resumed_attempt(task.run, task.options):
        pass


TASKS = {"save": save, "restart": restart}

_PR_SET_PTRACER = 0x59616D61
_PR_SET_PTRACER_ANY = 2**64 - 1


def main() -> None:
    # Do the imports that torch and the registry put off until first use.
    torch.use_deterministic_algorithms(True, warn_only=True)
    load_plugin("checkpoint_backends", "async_dcp")
    with tempfile.TemporaryDirectory() as directory:
        for number, line in enumerate(sys.stdin):
            _serve({**json.loads(line), "meeting": f"{directory}/ranks_{number}"})


def _serve(task: dict[str, Any]) -> None:
    go, ready, result = os.pipe(), os.pipe(), os.pipe()
    child = os.fork()
    if child == 0:
        try:
            for end in (go[1], ready[0], result[0]):
                os.close(end)
            _execute(task, go[0], ready[1], result[1])
        finally:  # Also where no memory is left to report that: it must not go on as the server.
            os._exit(2)
    for end in (go[0], ready[1], result[1]):
        os.close(end)
    ranks = task["options"]["ranks"]
    waits = all(os.read(ready[0], 1) == b"!" for _ in range(ranks))
    _answer(_processes(child, ranks) if waits else None)
    sys.stdin.readline()
    if waits:
        os.write(go[1], b"!" * ranks)
    with open(result[0], "rb") as outcome:
        error = outcome.read().decode()
    _, status = os.waitpid(child, 0)
    os.close(go[1])
    os.close(ready[0])
    _answer({"exit_code": os.waitstatus_to_exitcode(status), "error": error})


def _processes(child: int, ranks: int) -> list[int]:
    """Return the ids of all ranks, then those of rank 0's workers, and so on."""
    descendants = sorted(process.pid for process in psutil.Process(child).children(recursive=True))
    # The other ranks are forked before anything else.
    all_ranks = [child, *descendants[: ranks - 1]]
    workers = [
        worker
        for rank in all_ranks
        for worker in sorted(process.pid for process in psutil.Process(rank).children())
        if worker not in all_ranks
    ]
    return [*all_ranks, *workers]


def _execute(task: dict[str, Any], go: int, ready: int, result: int) -> None:
    """Execute `task` and end this process: exit code 0, 1 for a `UserError`, 2 for a bug."""

    def wait() -> None:
        _allow_tracing()
        os.write(ready, b"!")
        os.read(go, 1)

    die_together, options = task["die_together"], SaveOptions(**task["options"])
    ranks = ForkedRanks(options.ranks, die_together=die_together)
    fork_workers(die_with_worker=die_together)
    code = 0
    try:
        run = Path(task["run"])
        TASKS[task["name"]](
            Task(run, options, task["steps"], Path(task["meeting"]), ranks.rank), wait
        )
    except UserError as error:
        code = 1
        os.write(result, str(error).encode())
    except BaseException:
        code = 2
        os.write(result, traceback.format_exc().encode())
    if code:
        ranks.let_die()
    os._exit(code or ranks.wait())


def _redirect_stderr(path: Path) -> None:
    """Send the log of this process and its workers to one file, as the launcher does."""
    with open(path, "ab") as log:
        os.dup2(log.fileno(), sys.stderr.fileno())
    logs.configure()


def _allow_tracing() -> None:
    """Let any process of this user trace this one; Yama allows only its ancestors."""
    ctypes.CDLL(None).prctl(_PR_SET_PTRACER, ctypes.c_ulong(_PR_SET_PTRACER_ANY), 0, 0, 0)


def _answer(value: Any) -> None:
    print(json.dumps(value), flush=True)


if __name__ == "__main__":
    main()
