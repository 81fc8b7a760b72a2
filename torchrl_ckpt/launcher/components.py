"""The components of a job, each with the command that starts it. They read `resolved.json`."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from torchrl_ckpt.config.trainer import TrainerConfig
from torchrl_ckpt.plugin_api.heartbeat import DIRECTORY_VARIABLE
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
    lived for `restart_reset_seconds`. Any other component ends by itself. One that
    `saves_on_stop` is given time to do so when another one fails.
    """

    name: str
    argv: Sequence[str]
    log: Path
    env: Mapping[str, str] = field(default_factory=dict)
    pass_fds: tuple[int, ...] = ()
    is_server: bool = False
    max_restarts: int = 0
    restart_reset_seconds: float = 3600.0
    saves_on_stop: bool = False


def trainer(run: RunDirectory, config: TrainerConfig, resolved: Path | None = None) -> Component:
    """Return the trainer: its only rank, or torchrun, which starts as many as the recipe says."""
    rank = _python(_ENTRY, "trainer", str(resolved or run.resolved))
    several = _python("torchrl_ckpt.launcher.torchrun", str(config.ranks), *rank)
    return Component(
        "trainer",
        rank if config.ranks == 1 else several,
        run.log("trainer"),
        saves_on_stop=config.ckpt is not None,
        env=_environment(run),
    )


def orchestrator(
    run: RunDirectory, env: Mapping[str, str], resolved: Path | None = None
) -> Component:
    """Return the orchestrator."""
    return Component(
        "orchestrator",
        _python(_ENTRY, "orchestrator", str(resolved or run.resolved)),
        run.log("orchestrator"),
        env={**_environment(run), **env},
    )


def inference(run: RunDirectory, env: Mapping[str, str], listener: int, python: Path) -> Component:
    """Return the inference server.

    `python` is the interpreter of the engine's environment (`engine_env`). `listener` is the file
    descriptor of a bound socket: a port in use shows before any process starts, and a restarted
    server keeps its address.
    """
    return Component(
        "inference",
        _python(_ENTRY, "inference", str(run.resolved), str(listener), interpreter=python),
        run.log("inference"),
        env={**_environment(run), **env},
        pass_fds=(listener,),
        is_server=True,
        max_restarts=_SERVER_RESTARTS,
    )


def _environment(run: RunDirectory) -> dict[str, str]:
    """What every component gets in its environment."""
    return {**_OPENMP, DIRECTORY_VARIABLE: str(run.heartbeats)}


def _python(module: str, *arguments: str, interpreter: Path = Path(sys.executable)) -> list[str]:
    """The command that runs `module`, which finds no module in the working directory (-P)."""
    return [str(interpreter), "-P", "-m", module, *arguments]
