"""Runs supervised fine-tuning: the trainer alone."""

from __future__ import annotations

from torchrl_ckpt.config.sft_recipe import SftRecipe
from torchrl_ckpt.launcher import components
from torchrl_ckpt.launcher.job import finished_job
from torchrl_ckpt.launcher.start import begin_attempt
from torchrl_ckpt.launcher.summary import checkpoint_lines, missing_rows, row_of, stopped_early
from torchrl_ckpt.plugin_api.errors import RunInterrupted
from torchrl_ckpt.run import metrics
from torchrl_ckpt.run.attempt import Attempt
from torchrl_ckpt.run.resolved import write_resolved


def run_sft(recipe: SftRecipe) -> None:
    """Train to the last step. Raises `RunInterrupted` if the user stops the run before."""
    with begin_attempt("sft", recipe) as start:
        attempt, run = start.attempt, start.attempt.run
        write_resolved(run.resolved, "sft", recipe, attempt)
        job = [components.trainer(run, recipe)]
        with finished_job(start, job, title=f"Supervised fine-tuning in {run.root}") as display:
            if message := stopped_early(attempt):
                raise RunInterrupted(message)
            display.finish(_summary(recipe, attempt))


def _summary(recipe: SftRecipe, attempt: Attempt) -> list[str]:
    run, last_step = attempt.run, attempt.max_steps
    rows = metrics.read(run.metrics)
    row = row_of(rows, "trainer", last_step)
    loss = f", loss {float(row['loss']):.4f}" if "loss" in row else ""
    accuracy = (
        f", token accuracy {float(row['token_accuracy']):.3f}" if "token_accuracy" in row else ""
    )
    lines = [f"training finished: step {last_step}{loss}{accuracy}"]
    if recipe.export_weights:
        lines.append(f"model: {run.weights / f'step_{last_step}'}")
    return [*lines, *checkpoint_lines(attempt), *missing_rows(rows, last_step)]
