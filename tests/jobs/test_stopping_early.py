"""A job that is asked to stop where no step is under way ends at once."""

from __future__ import annotations

import signal
import subprocess
import time
from pathlib import Path
from typing import Any

from tests.support.commands import RECIPES, free_port, start
from tests.support.waiting import wait_until


def stop(process: Any, seconds: float = 15) -> str:
    """Send SIGTERM to a command; return what it has shown once it has ended."""
    began = time.monotonic()
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130, out + err
    assert "error:" not in err
    assert "nothing to save" in err
    assert time.monotonic() - began < seconds
    return out


def test_a_job_without_a_server_says_what_it_waits_for_and_can_be_stopped(tmp_path: Path) -> None:
    url = f"http://127.0.0.1:{free_port()}"
    rl = (
        *("rl", "@", RECIPES / "rl_reverse.toml", "--no-inference", "--no-trainer.warm-start"),
        *("--output-dir", tmp_path / "run", "--orchestrator.client.base-url", url),
    )
    process = start(rl, tmp_path, {}, subprocess.PIPE)
    progress = tmp_path / "run/logs/attempt_1/progress.jsonl"
    said = f"waiting for an inference server at {url}"
    wait_until(lambda: progress.exists() and said in progress.read_text(), seconds=90)
    assert said in stop(process)


def test_a_job_that_starts_can_be_stopped(tmp_path: Path) -> None:
    sft = ("sft", "@", RECIPES / "sft_reverse.toml", "--ckpt", "--output-dir", tmp_path / "run")
    process = start(sft, tmp_path, {}, subprocess.PIPE)
    wait_until((tmp_path / "run/logs/attempt_1/trainer.log").exists, seconds=60)
    stop(process)
    assert not (tmp_path / "run/metrics.jsonl").exists()


def test_an_orchestrator_without_a_trainer_can_be_stopped(tmp_path: Path) -> None:
    command = ("orchestrator", "@", RECIPES / "reverse/orch.toml", "--output-dir", tmp_path / "run")
    process = start(command, tmp_path, {}, subprocess.PIPE)
    progress = tmp_path / "run/logs/attempt_1/progress.jsonl"
    wait_until(lambda: progress.exists() and "policy 0" in progress.read_text(), seconds=90)
    stop(process)
