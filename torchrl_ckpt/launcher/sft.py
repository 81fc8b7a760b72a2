"""Runs supervised fine-tuning: the trainer alone."""

from __future__ import annotations

from torchrl_ckpt.config.settings import to_json
from torchrl_ckpt.config.sft_recipe import SftRecipe
from torchrl_ckpt.launcher import components
from torchrl_ckpt.launcher.display.display import Display
from torchrl_ckpt.launcher.start import Attempt, begin
from torchrl_ckpt.launcher.summary import checkpoint_lines, last_row, stopped_early
from torchrl_ckpt.launcher.supervisor import supervise
from torchrl_ckpt.plugin_api.errors import RunInterrupted
from torchrl_ckpt.run import metrics
from torchrl_ckpt.run.resolved import write_resolved


def run_sft(recipe: SftRecipe) -> None:
    """Train to the end. Raises `RunInterrupted` where it was asked to stop before."""
    with begin(recipe.output_dir, recipe.ckpt, recipe.max_steps, to_json(recipe)) as attempt:
        run = attempt.run
        settled = _settle(recipe, attempt)
        write_resolved(run.resolved, "sft", settled)
        with Display(
            f"Supervised fine-tuning in {run.root}",
            run.metrics,
            run.progress,
            tasks={"trainer": recipe.max_steps},
            start=attempt.resumed_from,
        ) as display:
            for note in attempt.notes:
                display.message(note, "warning")
            supervise(
                [components.trainer(run, settled)],
                finite=["trainer"],
                display=display,
                on_stop_requested=run.stop.touch,
            )
            if message := stopped_early(run, settled):
                raise RunInterrupted(message)
            display.finish(_summary(settled, attempt))


def _settle(recipe: SftRecipe, attempt: Attempt) -> SftRecipe:
    """The recipe with what this start has decided in place."""
    update: dict[str, object] = {"attempt": attempt.run.attempt}
    if recipe.ckpt is not None and attempt.resumed_from:
        ckpt = recipe.ckpt.model_copy(update={"resume_step": attempt.resumed_from})
        update["ckpt"] = ckpt
    return recipe.model_copy(update=update)


def _summary(recipe: SftRecipe, attempt: Attempt) -> list[str]:
    run = attempt.run
    row = last_row(metrics.read(run.metrics), "trainer")
    accuracy = f", token accuracy {row['token_accuracy']:.3f}" if "token_accuracy" in row else ""
    lines = [f"training finished: step {row['step']}, loss {row['loss']:.4f}{accuracy}"]
    if recipe.export_weights:
        lines.append(f"model: {run.weights / f'step_{recipe.max_steps}'}")
    return [*lines, *checkpoint_lines(run, recipe.ckpt, recipe.max_steps)]
