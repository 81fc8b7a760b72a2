"""Components that are started one by one do what a job does."""

from __future__ import annotations

import subprocess
from pathlib import Path

from tests.support.commands import RECIPES, digests, free_port, running, start, succeed
from tests.support.waiting import wait_until
from torchrl_ckpt.checkpoint.layout import Layout
from torchrl_ckpt.plugin_api.durable_files import read_json

STEPS = 4


def together(workplace: Path, port: int, *more: object) -> None:
    """Run trainer and orchestrator, each by its own command, to the end."""
    shared = ("--output-dir", "outputs/alone", "--ckpt", *more)
    orchestrator = (
        *("orchestrator", "@", RECIPES / "reverse/orch.toml", *shared),
        *("--prompts-per-step", 16, "--no-evaluation"),
        *("--client.base-url", f"http://127.0.0.1:{port}"),
    )
    trainer = ("trainer", "@", RECIPES / "reverse/train.toml", *shared, "--rollout-timeout", 60)
    pair = [start(argv, workplace, {}, subprocess.PIPE) for argv in (orchestrator, trainer)]
    for process in pair:
        out, err = process.communicate(timeout=120)
        assert process.returncode == 0, out + err


def test_a_resume_takes_the_weights_of_the_checkpoint_and_needs_no_warm_start(
    sft_run: Path, workplace: Path
) -> None:
    port = free_port()
    with running("inference", "@", RECIPES / "reverse/infer.toml", "--port", port, cwd=workplace):
        together(workplace, port, "--max-steps", STEPS // 2)
        # The warm start's model is gone: a resume that wanted it would train it again.
        weights = sft_run / "weights"
        weights.rename(sft_run / "weights_away")
        try:
            resume = ("--ckpt.resume-step", STEPS // 2)
            together(workplace, port, "--max-steps", STEPS, *resume)
            assert not weights.exists()
        finally:
            (sft_run / "weights_away").rename(weights)
    run = workplace / "outputs/alone"
    assert Layout(run / "checkpoints").steps() == [STEPS // 2, STEPS]
    for component in ("trainer", "orchestrator"):
        attempt = read_json(run / f"logs/attempt_2/{component}.json")["attempt"]
        assert attempt["resume_step"] == STEPS // 2
    assert (run / "logs/attempt_1").stat().st_mode & 0o777 == 0o700

    flags = ("--max-steps", STEPS, "--ckpt", "--orchestrator.prompts-per-step", 16)
    rl = ("rl", "@", RECIPES / "rl_reverse.toml", *flags, "--no-orchestrator.evaluation")
    succeed(*rl, "--output-dir", "whole", cwd=workplace)
    last = f"checkpoints/step_{STEPS}"
    assert digests(run / last) == digests(workplace / "whole" / last)


def test_a_second_trainer_and_a_job_beside_it_are_refused_and_the_first_goes_on(
    tmp_path: Path,
) -> None:
    run = tmp_path / "outputs/alone"
    trainer = ("trainer", "@", RECIPES / "reverse/train.toml", "--no-warm-start")
    first = start((*trainer, "--output-dir", run), tmp_path, {}, subprocess.PIPE)
    try:
        wait_until((run / "pair.json").exists, seconds=60)
        sft = ("sft", "@", RECIPES / "sft_reverse.toml")
        for second in (trainer, sft):
            refused = start((*second, "--output-dir", run), tmp_path, {}, subprocess.PIPE)
            out, err = refused.communicate(timeout=60)
            assert refused.returncode == 2, out + err
            assert f"in use by the `trainer` (process {first.pid})" in " ".join(err.split())
        assert first.poll() is None
        assert not (run / "logs/attempt_1/stop").exists()
    finally:
        first.kill()
        first.communicate(timeout=60)
