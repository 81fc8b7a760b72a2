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
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import torch

from tests.support.faults.forked_worker import fork_workers
from tests.support.one_rank_world import one_rank_world
from tests.support.toy_training import SaveOptions, ToyTraining, resumed_attempt
from torchrl_ckpt.plugin_api.errors import UserError
from torchrl_ckpt.registry.loading import load_plugin
from torchrl_ckpt.run import logs


def save(run: Path, options: SaveOptions, steps: list[int], wait: Callable[[], None]) -> None:
    """Train through `steps` and save a checkpoint after each."""
    with one_rank_world() as world:
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


def restart(run: Path, options: SaveOptions, _: list[int], wait: Callable[[], None]) -> None:
    """Begin another attempt from the latest checkpoint."""
    logging.disable()
    wait()
    with resumed_attempt(run, options):
        pass


TASKS = {"save": save, "restart": restart}

_PR_SET_PTRACER = 0x59616D61
_PR_SET_PTRACER_ANY = 2**64 - 1


def main() -> None:
    # Do the imports that torch and the registry put off until first use.
    torch.use_deterministic_algorithms(True, warn_only=True)
    load_plugin("checkpoint_backends", "async_dcp")
    for line in sys.stdin:
        _serve(json.loads(line))


def _serve(task: dict[str, Any]) -> None:
    go, ready, result = os.pipe(), os.pipe(), os.pipe()
    child = os.fork()
    if child == 0:
        for end in (go[1], ready[0], result[0]):
            os.close(end)
        _execute(task, go[0], ready[1], result[1])
    for end in (go[0], ready[1], result[1]):
        os.close(end)
    waits = os.read(ready[0], 1) == b"!"
    workers = sorted(worker.pid for worker in psutil.Process(child).children()) if waits else []
    _answer([child, *workers] if waits else None)
    sys.stdin.readline()
    if waits:
        os.write(go[1], b"!")
    with open(result[0], "rb") as outcome:
        error = outcome.read().decode()
    _, status = os.waitpid(child, 0)
    os.close(go[1])
    os.close(ready[0])
    _answer({"exit_code": os.waitstatus_to_exitcode(status), "error": error})


def _execute(task: dict[str, Any], go: int, ready: int, result: int) -> None:
    """Execute `task` and end this process: exit code 0, 1 for a `UserError`, 2 for a bug."""

    def wait() -> None:
        _allow_tracing()
        os.write(ready, b"!")
        os.read(go, 1)

    fork_workers(die_with_worker=task["die_together"])
    code = 0
    try:
        options = SaveOptions(**task["options"])
        TASKS[task["name"]](Path(task["run"]), options, task["steps"], wait)
    except UserError as error:
        code = 1
        os.write(result, str(error).encode())
    except BaseException:
        code = 2
        os.write(result, traceback.format_exc().encode())
    os._exit(code)


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
