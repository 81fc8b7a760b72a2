"""A job that is asked to stop finishes its step, saves, and says how to resume."""

from __future__ import annotations

import signal
import subprocess
from pathlib import Path

import pytest

from tests.support.commands import RECIPES, digests, start, succeed, wait_for_step
from torchrl_ckpt.checkpoint.layout import Layout

SFT = ("sft", "@", RECIPES / "sft_reverse.toml", "--ckpt")
STEPS = 40


@pytest.mark.parametrize(
    "number", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.slow)]
)
def test_fine_tuning_resumes_where_it_stopped(
    sft_run: Path, tmp_path: Path, number: signal.Signals
) -> None:
    run = tmp_path / "outputs/sft_reverse"
    process = start((*SFT, "--max-steps", STEPS), tmp_path, {}, subprocess.PIPE)
    wait_for_step(run, 3)
    process.send_signal(number)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130, out + err
    (step,) = Layout(run / "checkpoints").steps()
    assert 3 <= step < STEPS
    assert f"stopped after step {step} of {STEPS}, as requested" in err
    assert f"--ckpt.resume-step {step}" in err
    assert "error:" not in err

    succeed(*SFT, "--max-steps", STEPS, "--ckpt.resume-step", "latest", cwd=tmp_path)
    last = f"checkpoints/step_{STEPS}"
    assert digests(run / last) == digests(sft_run / last)


def test_reinforcement_learning_saves_both_parts(sft_run: Path, workplace: Path) -> None:
    run = workplace / "stopped"
    recipe = RECIPES / "rl_reverse.toml"
    flags = ("--ckpt", "--orchestrator.prompts-per-step", 16, "--output-dir", run)
    process = start(("rl", "@", recipe, *flags), workplace, {}, subprocess.PIPE)
    wait_for_step(run, 4)
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 130, out + err
    (step,) = Layout(run / "checkpoints").steps()
    # A stop waits for no batch: the part has the next one, or the policy that it comes from.
    part = run / f"checkpoints/step_{step}/orchestrator"
    batch = part / f"rollouts/step_{step + 1}/batch.safetensors"
    policy = part / f"weights/step_{step - 1}/policy.json"
    assert batch.is_file() != policy.is_file()
