"""The command line of each of a job's processes. They read `resolved.json`, never flags."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path

from torchrl_ckpt.config.trainer import TrainerConfig
from torchrl_ckpt.launcher.process import Component
from torchrl_ckpt.run.directory import RunDirectory

_ENTRY = "torchrl_ckpt.cli.component"

# Idle OpenMP threads of one process would spin on the cores that another needs.
_QUIET_THREADS = {"OMP_WAIT_POLICY": "PASSIVE"}

# A server that dies oftener has a reason that another start does not mend.
_SERVER_RESTARTS = 3


def trainer(run: RunDirectory, config: TrainerConfig, resolved: Path | None = None) -> Component:
    """One torchrun, and through it as many ranks as the recipe says."""
    torchrun = [
        "torchrl_ckpt.launcher.torchrun",
        "--standalone",
        f"--nproc-per-node={config.ranks}",
    ]
    return _component(run, "trainer", ["-m", *torchrun, "-m", _ENTRY], resolved=resolved)


def orchestrator(
    run: RunDirectory, env: Mapping[str, str], resolved: Path | None = None
) -> Component:
    return _component(run, "orchestrator", ["-m", _ENTRY], env, resolved=resolved)


def inference(run: RunDirectory, env: Mapping[str, str], listening: int, python: Path) -> Component:
    """`python` is of the environment that the engine runs in (`environments.py`), and `listening`
    the descriptor of a socket that is bound already, so that a port in use shows before any process
    starts, and a server that is started again has the same address."""
    return _component(
        run,
        "inference",
        ["-m", _ENTRY],
        env,
        more=[str(listening)],
        pass_fds=(listening,),
        python=python,
        restarts=_SERVER_RESTARTS,
    )


def _component(
    run: RunDirectory,
    name: str,
    python_arguments: list[str],
    env: Mapping[str, str] | None = None,
    more: list[str] | None = None,
    pass_fds: tuple[int, ...] = (),
    resolved: Path | None = None,
    python: Path | None = None,
    restarts: int = 0,
) -> Component:
    return Component(
        name=name,
        argv=[
            str(python or sys.executable),
            *python_arguments,
            name,
            str(resolved or run.resolved),
            *(more or []),
        ],
        log=run.log(name),
        env={**_QUIET_THREADS, **(env or {})},
        pass_fds=pass_fds,
        restarts=restarts,
    )
