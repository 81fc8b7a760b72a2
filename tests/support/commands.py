"""Runs the project's commands as a user does, and reads what they leave behind."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

ROOT = Path(__file__).parents[2]
RECIPES = ROOT / "recipes"
BIN = Path(sys.executable).parent

# What a clock measures, and the number of the start.
_STEP_SECONDS = 120.0
_VARYING = ("time", "attempt")
_VARYING_ENDS = ("seconds", "tokens_per_second")


@dataclass(frozen=True)
class Finished:
    """A command that has ended."""

    code: int
    out: str
    err: str


def run(
    *argv: object, cwd: Path, env: Mapping[str, str] | None = None, timeout: float = 400
) -> Finished:
    """Run a command to its end and assert that it leaves no process behind."""
    process = start(argv, cwd, env, subprocess.PIPE)
    family = psutil.Process(process.pid)
    try:
        out, err = process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        for child in [*family.children(recursive=True), family]:
            child.kill()
        raise
    left = [p.info for p in psutil.process_iter(["pid", "cmdline"]) if _is_component(p, cwd)]
    assert not left, f"processes left behind: {left}"
    return Finished(process.returncode, out, err)


def succeed(*argv: object, cwd: Path, **more: Any) -> Finished:
    finished = run(*argv, cwd=cwd, **more)
    assert finished.code == 0, finished.out[-3000:] + finished.err
    return finished


@contextmanager
def running(*argv: object, cwd: Path, env: Mapping[str, str] | None = None) -> Iterator[Any]:
    """Run a command that stays up; Ctrl-C ends it."""
    log = open(cwd / "server.log", "w")  # noqa: SIM115
    process = start(argv, cwd, env, log)
    try:
        yield process
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(timeout=30)
        log.close()


def metrics(run_directory: Path) -> dict[tuple[str, int], dict[str, Any]]:
    """The rows of a run, at most one for each component and step, without timings."""
    rows: dict[tuple[str, int], dict[str, Any]] = {}
    for line in (run_directory / "metrics.jsonl").read_text().splitlines():
        row = json.loads(line)
        key = row["component"], row["step"]
        assert key not in rows, f"two rows for {key}"
        rows[key] = {
            name: value
            for name, value in row.items()
            if name not in _VARYING and not name.endswith(_VARYING_ENDS)
        }
    return rows


def wait_for_step(run_directory: Path, step: int) -> None:
    """Wait until a component has written its row of `step`."""
    path = run_directory / "metrics.jsonl"
    deadline = time.monotonic() + _STEP_SECONDS
    while f'"step": {step},' not in (path.read_text() if path.exists() else ""):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def digests(checkpoint: Path) -> dict[str, str]:
    """Digests of the files of a checkpoint that are equal where the state is equal."""
    manifest = json.loads((checkpoint / "manifest.json").read_text())
    return {
        file["path"]: file["digest"]
        for file in manifest["files"]
        # These name the attempt and hold timings.
        if not file["path"].endswith(("batch.json", "part.json"))
    }


def start(argv: tuple[object, ...], cwd: Path, env: Mapping[str, str] | None, to: Any) -> Any:
    """Start a command, whose output goes to `to`."""
    first, *rest = map(str, argv)
    command = first if "/" in first else str(BIN / first)
    return subprocess.Popen(
        [command, *rest],
        cwd=cwd,
        env={**os.environ, "COLUMNS": "100", "XDG_STATE_HOME": str(cwd / "state"), **(env or {})},
        stdin=subprocess.DEVNULL,
        stdout=to,
        stderr=subprocess.PIPE if to is subprocess.PIPE else to,
        text=True,
    )


def free_port() -> int:
    """A loopback port that is free at the moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _is_component(process: psutil.Process, cwd: Path) -> bool:
    """Whether it is a component of a job in `cwd`; a server started by hand is none."""
    command = " ".join(process.info["cmdline"] or [])
    return "torchrl_ckpt.cli.component" in command and str(cwd) in command
