"""`--dry-run`: checks all that a start needs, up to the first step, and starts nothing."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from pathlib import Path

from torchrl_ckpt.config.orchestrator import OrchestratorConfig
from torchrl_ckpt.config.rl_recipe import RlRecipe
from torchrl_ckpt.config.section import Section
from torchrl_ckpt.config.settings import plugin_tables
from torchrl_ckpt.config.sft_recipe import SftRecipe
from torchrl_ckpt.config.trainer import RlTrainerConfig
from torchrl_ckpt.launcher.start import preview
from torchrl_ckpt.launcher.warm_start import warm_start_recipe
from torchrl_ckpt.run.progress import Finding, Notices


def dry_run(command: str, recipe: Section) -> None:
    """Print what a start of `recipe` would find. Raises the `UserError` that it would end with."""
    for finding in _trials(recipe):
        _show(finding)
    start = preview(command, recipe)
    for note in start.notes:
        _show(Finding(note, "warning"))
    if start.resume_step is not None:
        _show(Finding(f"it would resume from step {start.resume_step}, whose files are verified"))
    for finding in _findings(recipe, start.resume_step):
        _show(finding)
    print(f"the recipe is valid; every value of it is in {start.resolved}")


def _trials(recipe: Section) -> Iterator[Finding]:
    """What the loss and the environment return. An environment of `sft` scores nothing: its
    problems are checked with the data."""
    from torchrl_ckpt.inspection.plugin_trials import try_plugin

    for kind, table in plugin_tables(recipe):
        if kind == "environments" and isinstance(recipe, SftRecipe):
            continue
        if outcome := try_plugin(kind, table):
            yield Finding(f"{kind} `{table.type}`: {outcome}")


def _findings(recipe: Section, resume_step: int | None) -> Iterator[Finding]:
    # Imported here, and only where needed: a tokenizer takes seconds to import.
    match recipe:
        case SftRecipe():
            yield from _data_findings(recipe)
        case RlRecipe():
            yield from _warm_start_findings(recipe.trainer.warm_start, resume_step)
            yield from _problem_findings(recipe.orchestrator, recipe)
        case RlTrainerConfig():
            yield from _warm_start_findings(recipe.warm_start, resume_step)
        case OrchestratorConfig():
            yield from _problem_findings(recipe, None)


def _data_findings(recipe: SftRecipe) -> list[Finding]:
    from torchrl_ckpt.trainer.sft_data import check_data

    started: float | None = None
    notices = Notices()

    def show(completed: int, total: int) -> None:
        nonlocal started
        if started is None:  # loading the tokenizer does not count
            started = time.monotonic()
        if notices.is_due(time.monotonic() - started):
            print(f"checking {total:,} samples: {completed:,} so far", file=sys.stderr)

    return check_data(recipe, show)


def _problem_findings(config: OrchestratorConfig, job: RlRecipe | None) -> list[Finding]:
    from torchrl_ckpt.orchestrator.main import check_problems

    return check_problems(config, job)


def _warm_start_findings(file: Path | None, resume_step: int | None) -> Iterator[Finding]:
    """What a fresh run starts from; a resumed one has its weights from the checkpoint."""
    if file is None or resume_step is not None:
        return
    recipe, weights = warm_start_recipe(file)
    if weights.is_dir():
        yield Finding(f"it would start from the weights in {weights}")
    else:
        yield Finding(f"it would train {file} first, as there are no weights in {weights} yet")
        yield from _data_findings(recipe)


def _show(finding: Finding) -> None:
    prefix = "warning: " if finding.level == "warning" else ""
    print(f"{prefix}{finding.text}")
