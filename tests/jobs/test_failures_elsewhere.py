"""A failure elsewhere costs no finished step: the trainer saves it, and a resume is exact."""

from __future__ import annotations

import signal
import subprocess
import time
from pathlib import Path

import pytest

from tests.support.commands import (
    RECIPES,
    Finished,
    digests,
    free_port,
    metrics,
    run,
    running,
    start,
    succeed,
    wait_for_step,
)
from tests.support.site_packages import SitePackages
from torchrl_ckpt.checkpoint.layout import Layout
from torchrl_ckpt.checkpoint.verify import verify

STEPS = 6
PROMPTS = 8
SAMPLES = 8

FAILING = """
import os
from torchrl_ckpt_reverse.environment import ReverseText

class Failing(ReverseText):
    calls = 0

    def score(self, problem, completion):
        self.calls += 1
        if self.calls == int(os.environ.get("FAILS_AT", 0)):
            raise RuntimeError("the scorer is out of order")
        return super().score(problem, completion)
"""

SMALL = (
    *("--ckpt", "--no-orchestrator.evaluation"),
    *("--orchestrator.prompts-per-step", PROMPTS, "--orchestrator.samples-per-prompt", SAMPLES),
)


@pytest.fixture(scope="module", name="recipe")
def write_recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The main job's recipe with an environment whose scorer fails when it is told to."""
    directory = tmp_path_factory.mktemp("failing")
    entry_points = "[torchrl_ckpt.environments]\nfailing = failing_words:Failing\n"
    SitePackages(directory).install(
        "failing_words", entry_points, modules={"failing_words": FAILING}
    )
    recipe = directory / "rl.toml"
    recipe.write_text(
        f'"@" = "{RECIPES}/rl_reverse.toml"\n[orchestrator.environment]\n'
        f'type = "failing"\ntext = "{RECIPES}/reverse/words.txt"\n'
    )
    return recipe


def environment(recipe: Path, *, fails_in_step: int = 0) -> dict[str, str]:
    calls = PROMPTS * SAMPLES * (fails_in_step - 1) + 5 if fails_in_step else 0
    return {"PYTHONPATH": str(recipe.parent), "FAILS_AT": str(calls)}


def says(finished: Finished, *words: str) -> None:
    text = " ".join(finished.err.split())
    for word in words:
        assert word in text, finished.err


def assert_same(job: Path, whole: Path) -> None:
    last = f"checkpoints/step_{STEPS}"
    assert digests(job / last) == digests(whole / last)
    rows, expected = metrics(job), metrics(whole)
    del rows["checkpoint", 3]  # An uninterrupted run does not save that step.
    assert rows == expected


@pytest.mark.slow
@pytest.mark.parametrize("async_level", [0, 1, 2])
def test_a_scorer_that_raises_costs_no_finished_step(
    sft_run: Path, workplace: Path, recipe: Path, async_level: int
) -> None:
    job, whole = (workplace / f"scorer_{async_level}_{name}" for name in ("failed", "whole"))
    rl = (
        "rl",
        "@",
        recipe,
        *SMALL,
        "--max-steps",
        STEPS,
        "--orchestrator.async-level",
        async_level,
        "--output-dir",
    )
    succeed(*rl, whole, cwd=workplace, env=environment(recipe))
    finished = run(*rl, job, cwd=workplace, env=environment(recipe, fails_in_step=4))
    assert finished.code == 2
    says(
        finished,
        "error: environment `failing` raised RuntimeError in score of problem",
        "the scorer is out of order",
        "step 3, the last one that was finished, is saved",
        "resume with `--ckpt.resume-step latest`",
    )
    assert finished.err.index("out of order") < finished.err.index("is saved")
    assert Layout(job / "checkpoints").steps() == [3]
    verify(Layout(job / "checkpoints").step(3))
    succeed(*rl, job, "--ckpt.resume-step", "latest", cwd=workplace, env=environment(recipe))
    assert_same(job, whole)


@pytest.mark.slow
def test_a_server_that_dies_for_good_costs_no_finished_step(sft_run: Path, workplace: Path) -> None:
    job, port = workplace / "outputs/server_died", free_port()
    rl = (
        *("rl", "--trainer", "@", RECIPES / "reverse/train.toml"),
        *("--orchestrator", "@", RECIPES / "reverse/orch.toml", *SMALL, "--max-steps", 500),
        *("--orchestrator.client.base-url", f"http://127.0.0.1:{port}"),
        *("--orchestrator.client.timeout", 20, "--output-dir", job),
    )
    with running("inference", "@", RECIPES / "reverse/infer.toml", "--port", port, cwd=workplace):
        process = start(rl, workplace, {}, subprocess.PIPE)
        wait_for_step(job, 3)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 5, out + err
    text = " ".join(err.split())
    assert "no inference server for 20 s" in text
    (step,) = Layout(job / "checkpoints").steps()
    assert f"step {step}, the last one that was finished, is saved" in text
    assert max(n for name, n in metrics(job) if name == "trainer") == step


def test_a_stop_while_the_trainer_waits_for_rollouts_saves_at_once(
    sft_run: Path, workplace: Path
) -> None:
    job, port = workplace / "outputs/stopped_waiting", free_port()
    rl = (
        *("rl", "--trainer", "@", RECIPES / "reverse/train.toml"),
        *("--orchestrator", "@", RECIPES / "reverse/orch.toml", *SMALL, "--max-steps", 500),
        *("--orchestrator.client.base-url", f"http://127.0.0.1:{port}", "--output-dir", job),
    )
    with running("inference", "@", RECIPES / "reverse/infer.toml", "--port", port, cwd=workplace):
        process = start(rl, workplace, {}, subprocess.PIPE)
        wait_for_step(job, 3)
    time.sleep(2)  # By now the trainer has what there is.
    began = time.monotonic()
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 130, out + err
    assert time.monotonic() - began < 60
    (step,) = Layout(job / "checkpoints").steps()
    assert f"stopped after step {step} of 500, as requested" in " ".join(err.split())
