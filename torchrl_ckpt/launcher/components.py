"""The components of a job, each with the command that starts it. They read `resolved.json`."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from torchrl_ckpt.config.trainer import TrainerConfig
from torchrl_ckpt.run.directory import RunDirectory

_ENTRY = "torchrl_ckpt.cli.component"

# Idle OpenMP threads of one process must not spin on the cores that another process needs.
_OPENMP = {"OMP_WAIT_POLICY": "PASSIVE"}

# A server that dies more often has a fault that a restart does not repair.
_SERVER_RESTARTS = 3


@dataclass(frozen=True)
class Component:
    """A process of a job, before it is started.

    `env` is added to the launcher's environment, `log` gets all output, and the file descriptors
    `pass_fds` stay open. A server (`is_server`) holds no state and runs until the job stops it; if
    it ends earlier, it is restarted up to `max_restarts` times, and as often again after it has
    lived for `restart_reset_seconds`. Any other component ends by itself.
    """

    name: str
    argv: Sequence[str]
    log: Path
    env: Mapping[str, str] = field(default_factory=dict)
    pass_fds: tuple[int, ...] = ()
    is_server: bool = False
    max_restarts: int = 0
    restart_reset_seconds: float = 3600.0


def trainer(run: RunDirectory, config: TrainerConfig, resolved: Path | None = None) -> Component:
    """Return the trainer: torchrun, which starts as many ranks as the recipe asks for."""
    torchrun = [
        "torchrl_ckpt.launcher.torchrun",
        "--standalone",
        f"--nproc-per-node={config.ranks}",
    ]
    return Component(
        "trainer",
        [sys.executable, "-m", *torchrun, "-m", *_entry(run, "trainer", resolved)],
        run.log("trainer"),
        env=_OPENMP,
    )


def orchestrator(
    run: RunDirectory, env: Mapping[str, str], resolved: Path | None = None
) -> Component:
    """Return the orchestrator."""
    return Component(
        "orchestrator",
        [sys.executable, "-m", *_entry(run, "orchestrator", resolved)],
        run.log("orchestrator"),
        env={**_OPENMP, **env},
    )


def inference(run: RunDirectory, env: Mapping[str, str], listener: int, python: Path) -> Component:
    """Return the inference server.

    `python` is the interpreter of the engine's environment (`engine_env`). `listener` is the file
    descriptor of a bound socket: a port in use shows before any process starts, and a restarted
    server keeps its address.
    """
    return Component(
        "inference",
        [str(python), "-m", *_entry(run, "inference"), str(listener)],
        run.log("inference"),
        env={**_OPENMP, **env},
        pass_fds=(listener,),
        is_server=True,
        max_restarts=_SERVER_RESTARTS,
    )


def _entry(run: RunDirectory, name: str, resolved: Path | None = None) -> list[str]:
    """The module that every component runs, with its arguments."""
    return [_ENTRY, name, str(resolved or run.resolved)]
