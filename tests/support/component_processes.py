"""Fixtures: small real processes as a job's components, and a launcher that supervises them."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from torchrl_ckpt.launcher.components import Component

MakeComponent = Callable[[str, str], Component]
LivingProcesses = Callable[[], list[psutil.Process]]
StartLauncher = Callable[..., subprocess.Popen[str]]

LAUNCHER = """
import json, sys
from pathlib import Path
from torchrl_ckpt.launcher.components import Component
from torchrl_ckpt.launcher.display.display import Display
from torchrl_ckpt.launcher.supervisor import supervise
from torchrl_ckpt.launcher.watchdog import Watchdog
from torchrl_ckpt.plugin_api.errors import UserError
from torchrl_ckpt.run.directory import RunDirectory

directory = Path(sys.argv[1])
components = [
    Component(
        name,
        [sys.executable, "-c", code, str(directory)],
        directory / f"{name}.log",
        is_server=name == "inference",
        saves_on_stop=name == "trainer",
    )
    for name, code in json.loads(sys.argv[2]).items()
]
try:
    with Display("run", RunDirectory(directory, 1), last_steps={}) as display:
        supervise(
            components,
            display=display,
            watchdog=Watchdog(directory / "heartbeats", None),
            on_stop_requested=(directory / "stop").touch,
            has_begun=lambda: not (directory / "starting").exists(),
            grace_seconds=2.0,
        )
except UserError as error:
    print(error)
    sys.exit(error.exit_code)
print("finished")
"""
"""A launcher as a program. Arguments: a directory, and the components' Python code by name as JSON.
The components get the directory as their argument."""


@pytest.fixture(name="make_component")
def make_component_fixture(tmp_path: Path) -> MakeComponent:
    """Makes a component of a name and Python code, with the test's directory as its argument.

    `inference` is a server."""

    def make(name: str, code: str) -> Component:
        argv = [sys.executable, "-c", code, str(tmp_path)]
        return Component(name, argv, tmp_path / f"{name}.log", is_server=name == "inference")

    return make


@pytest.fixture(name="living_processes")
def living_processes_fixture(tmp_path: Path) -> Iterator[LivingProcesses]:
    """Lists the living processes that have the test's directory among their arguments."""

    def find() -> list[psutil.Process]:
        return [
            process
            for process in psutil.process_iter(["cmdline", "status"])
            if str(tmp_path) in (process.info["cmdline"] or [])
            and process.info["status"] != psutil.STATUS_ZOMBIE
        ]

    yield find
    for process in find():
        process.kill()


@pytest.fixture(name="start_launcher")
def start_launcher_fixture(tmp_path: Path) -> Iterator[StartLauncher]:
    """Starts `LAUNCHER` with components that are given as name and code, on a terminal if one is
    given, or by `nohup`."""
    launchers: list[subprocess.Popen[str]] = []

    def start(
        terminal: int | None = None, nohup: bool = False, **components: str
    ) -> subprocess.Popen[str]:
        argv = [sys.executable, "-c", LAUNCHER, str(tmp_path), json.dumps(components)]
        if terminal is None:
            argv = ["nohup", *argv] if nohup else argv
            launcher = subprocess.Popen(argv, stdout=subprocess.PIPE, text=True)
        else:
            # `setsid --ctty` makes standard input the controlling terminal. SIGHUP counts, even
            # where the tests themselves were started by `nohup`.
            argv = ["setsid", "--ctty", "env", "--default-signal=HUP", *argv]
            ends = {"stdin": terminal, "stdout": terminal, "stderr": terminal}
            launcher = subprocess.Popen(argv, **ends)  # type: ignore[call-overload]
        launchers.append(launcher)
        return launcher

    yield start
    for launcher in launchers:
        launcher.kill()
        launcher.communicate()
