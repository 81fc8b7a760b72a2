"""A fork server: does what a job does with its checkpoints, in a new process each time.

    python -m tests.support.faults.fork_server

Starting torch takes seconds, so it is done once, here. Each line of standard input is a task as
JSON. The answer is the ids of a child that has prepared everything and waits, and of the processes
that work for it, or null where that failed; on the next line it goes on, and the second answer
tells how it ended. Between the two a fault can be put in its way. `saver.py` is the client.
"""

from __future__ import annotations

import ctypes
import json
import logging
import os
import signal
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import patch

import psutil
import torch

from tests.support.faults.forked_worker import fork_companions
from tests.support.toy_training import Rehearsal, SaveOptions, one_rank, started_again
from torchrl_ckpt.plugin_api.errors import UserError, WorkerProcessDied
from torchrl_ckpt.registry.loading import load_plugin
from torchrl_ckpt.run import logs


def save(run: Path, options: SaveOptions, steps: list[int], wait: Callable[[], None]) -> None:
    """Train through `steps`, and checkpoint after each."""
    with one_rank() as world:
        job = Rehearsal(run, world)
        _log_to(job.run.log("trainer"))
        checkpoints = job.checkpoints(options)
        checkpoints.prepare(job.trainer)
        job.train_to(steps[0])
        wait()
        for step in steps:
            job.train_to(step)
            job.save(checkpoints)
        checkpoints.close()


def restart(run: Path, options: SaveOptions, steps: list[int], wait: Callable[[], None]) -> None:
    """Begin another attempt from the latest checkpoint; `steps` does not matter."""
    logging.disable()
    wait()
    with started_again(run, options):
        pass


TASKS = {"save": save, "restart": restart}

_PR_SET_PTRACER = 0x59616D61
_PR_SET_PTRACER_ANY = 2**64 - 1


def main() -> None:
    # The imports that torch puts off until they are needed.
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
        _be_child(task, go[0], ready[1], result[1])
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


def _be_child(task: dict[str, Any], go: int, ready: int, result: int) -> None:
    """Do `task` and end this process: 0, 1 for an error that a user can mend, 2 for any other."""

    def wait() -> None:
        _may_be_traced()
        os.write(ready, b"!")
        os.read(go, 1)

    fork_companions()
    if task["together"]:
        patch.object(WorkerProcessDied, "__init__", _die_as_well).start()
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


def _die_as_well(*_: object) -> None:
    """A kill of a whole job reaches all of its processes at once; strace's reaches one."""
    os.kill(os.getpid(), signal.SIGKILL)


def _log_to(path: Path) -> None:
    """As the runner does: what this process and its companions write goes to one file."""
    with open(path, "ab") as log:
        os.dup2(log.fileno(), sys.stderr.fileno())
    logs.configure()


def _may_be_traced() -> None:
    """Let any process of this user trace this one, where only its ancestors may (Yama)."""
    ctypes.CDLL(None).prctl(_PR_SET_PTRACER, ctypes.c_ulong(_PR_SET_PTRACER_ANY), 0, 0, 0)


def _answer(value: Any) -> None:
    print(json.dumps(value), flush=True)


if __name__ == "__main__":
    main()
