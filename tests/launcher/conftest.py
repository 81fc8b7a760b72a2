"""Small real processes in place of trainers and servers."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from torchrl_ckpt.launcher.process import Component

RUNNER = """
import json, sys
from pathlib import Path
from torchrl_ckpt.launcher.process import Component
from torchrl_ckpt.launcher.supervisor import supervise
from torchrl_ckpt.plugin_api.errors import UserError

class Lines:
    def refresh(self): pass
    def message(self, text, level="info"): print(text, flush=True)

directory = Path(sys.argv[1])
components = [
    Component(name, [sys.executable, "-c", code, str(directory)], directory / f"{name}.log")
    for name, code in json.loads(sys.argv[2]).items()
]
try:
    supervise(components, finite=["trainer"], display=Lines(), grace=2.0,
              on_stop_requested=(directory / "stop").touch)
except UserError as error:
    print(error)
    sys.exit(error.exit_code)
print("ended well")
"""
"""A runner as a program: its processes' code by name, the run's directory as their argument."""


@pytest.fixture
def component(tmp_path: Path) -> Callable[[str, str], Component]:
    """A component that runs some Python code, with the test's directory as its argument."""

    def make(name: str, code: str) -> Component:
        argv = [sys.executable, "-c", code, str(tmp_path)]
        return Component(name, argv, tmp_path / f"{name}.log")

    return make


@pytest.fixture
def left_behind(tmp_path: Path) -> Iterator[Callable[[], list[psutil.Process]]]:
    """Lists the living processes that have the test's directory among their arguments."""

    def find() -> list[psutil.Process]:
        processes = psutil.process_iter(["cmdline", "status"])
        return [
            process
            for process in processes
            if str(tmp_path) in (process.info["cmdline"] or [])
            and process.info["status"] != psutil.STATUS_ZOMBIE
        ]

    yield find
    for process in find():
        process.kill()


@pytest.fixture
def start_runner(tmp_path: Path) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Starts a runner of some components, each given by name and code."""
    runners: list[subprocess.Popen[str]] = []

    def start(**components: str) -> subprocess.Popen[str]:
        argv = [sys.executable, "-c", RUNNER, tmp_path, json.dumps(components)]
        runners.append(subprocess.Popen(argv, stdout=subprocess.PIPE, text=True))
        return runners[-1]

    yield start
    for runner in runners:
        runner.kill()
        runner.communicate()


@pytest.fixture
def wait_until() -> Callable[..., None]:
    """Waits for a condition, and fails if it does not come."""

    def wait(condition: Callable[[], object], seconds: float = 10.0) -> None:
        deadline = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < deadline, "waited in vain"
            time.sleep(0.02)

    return wait
