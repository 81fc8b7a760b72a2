"""A process of a job that hangs is named or replaced; waiting for one that works is no hang."""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.support.commands import RECIPES, metrics, start, succeed, wait_for_step
from tests.support.site_packages import SitePackages
from torchrl_ckpt.checkpoint.layout import Layout

SFT = ("sft", "@", RECIPES / "sft_reverse.toml", "--threads", 1, "--data.batch-size", 32)
RL = (
    *("rl", "@", RECIPES / "rl_reverse.toml", "--no-trainer.warm-start"),
    *("--no-orchestrator.evaluation", "--trainer.threads", 1, "--inference.threads", 1),
)
SMALL = ("--orchestrator.prompts-per-step", 8)
TIMEOUT = 8
HANGING = """
import asyncio, os, pathlib
from torchrl_ckpt_transformers.transformers_engine import TransformersEngine

class Hanging(TransformersEngine):
    async def generate(self, request, on_tokens=None):
        hung = pathlib.Path(os.environ["HUNG"])
        if not hung.exists():
            hung.touch()
            await asyncio.Event().wait()
        return await super().generate(request, on_tokens)
"""
"""An engine whose first request of all is never answered, while its server lives."""

WATCHED = ("--launcher.stall-timeout", TIMEOUT)


def stop_one(process: subprocess.Popen[str], run: Path, name: str) -> int:
    """Stop the process called `name` of a job that has done a step; return its id."""
    wait_for_step(run, 2)
    (heartbeat,) = run.glob(f"logs/*/heartbeats/{name}.*")
    pid = int(heartbeat.suffix.removeprefix("."))
    os.kill(pid, signal.SIGSTOP)
    return pid


def run_and_stop(argv: tuple[object, ...], cwd: Path, name: str) -> tuple[int, Any, str]:
    """Run a job, stop its process `name`; return that one's id, the job's process and output."""
    process = start((*argv, *WATCHED, "--output-dir", cwd / "run"), cwd, {}, subprocess.PIPE)
    pid = stop_one(process, cwd / "run", name)
    out, err = process.communicate(timeout=120)
    return pid, process, out + err


@pytest.mark.slow
@pytest.mark.parametrize(
    ("argv", "name"),
    [
        ((*SFT, "--ranks", 2, "--max-steps", 9999), "trainer rank 1"),
        ((*RL, *SMALL, "--max-steps", 9999), "orchestrator"),
    ],
    ids=["a rank", "the orchestrator"],
)
def test_a_stopped_process_ends_the_run_which_names_it(
    tmp_path: Path, argv: tuple[object, ...], name: str
) -> None:
    pid, process, shown = run_and_stop(argv, tmp_path, name)
    assert process.returncode == 1, shown
    assert f"error: {name} (process {pid}) has shown no progress for" in shown
    assert "(stopped by a signal)" in shown
    log = next((tmp_path / "run/logs").glob(f"*/{name.partition(' ')[0]}.log")).read_text()
    assert "most recent call first" in log


@pytest.mark.slow
def test_a_stopped_server_is_restarted_and_the_run_ends_well(tmp_path: Path) -> None:
    argv = (*RL, *SMALL, "--max-steps", 12)
    pid, process, shown = run_and_stop(argv, tmp_path, "inference")
    assert process.returncode == 0, shown
    assert f"inference (process {pid}) has shown no progress" in shown
    assert ("trainer", 12) in metrics(tmp_path / "run")


@pytest.mark.slow
def test_a_server_whose_engine_hangs_in_a_request_is_replaced_and_the_run_ends_well(
    tmp_path: Path,
) -> None:
    entry_points = "[torchrl_ckpt.engines]\nhanging = hanging_engine:Hanging\n"
    modules = {"hanging_engine": HANGING}
    SitePackages(tmp_path / "site").install("hanging_engine", entry_points, modules=modules)
    argv = (*RL, *SMALL, *WATCHED, "--inference.engine.type", "hanging", "--max-steps", 2)
    finished = succeed(
        *(*argv, "--output-dir", tmp_path / "run"),
        cwd=tmp_path,
        env={"PYTHONPATH": str(tmp_path / "site"), "HUNG": str(tmp_path / "hung")},
    )
    shown = " ".join((finished.out + finished.err).split())
    assert (tmp_path / "hung").exists()
    assert "inference (process" in shown
    assert "has shown no progress" in shown
    assert "is restarted (1 of at most" in shown
    assert ("trainer", 2) in metrics(tmp_path / "run")


@pytest.mark.slow
def test_a_stopped_committer_is_replaced_and_later_steps_are_saved(tmp_path: Path) -> None:
    save = ("--ckpt.save-async", "--ckpt.interval", 1, "--ckpt.keep", 1, "--max-steps", 60)
    pid, process, shown = run_and_stop((*SFT, *save), tmp_path, "checkpoint committer")
    assert process.returncode == 0, shown
    assert f"checkpoint committer (process {pid}) has shown no progress" in shown
    assert Layout(tmp_path / "run/checkpoints").steps() == [60]


@pytest.mark.slow
def test_a_wait_for_a_process_that_works_is_no_hang(tmp_path: Path) -> None:
    # The batch takes the server longer than the limit, and the others wait for it.
    large = ("--orchestrator.prompts-per-step", 2048, "--max-steps", 1)
    limit = ("--launcher.stall-timeout", 6, "--output-dir", tmp_path / "run")
    succeed(*RL, *large, *limit, cwd=tmp_path)
    rows = metrics(tmp_path / "run")
    assert rows["trainer", 1]["samples"] > 0
