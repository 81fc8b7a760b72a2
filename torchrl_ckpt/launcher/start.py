"""The start of a run, settled: its directory, what it resumes from, and the recipe to run.

`rl` and `sft` own their run's directory: they lock it and clear away what an interrupted start
left. A component that is started by hand shares the directory with the other one, joins its attempt
or begins one. It removes no checkpoint. Both settle the attempt in the same way (`_settle`).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from torchrl_ckpt.checkpoint import ownership
from torchrl_ckpt.checkpoint.commit import recover
from torchrl_ckpt.checkpoint.fork import fork
from torchrl_ckpt.checkpoint.layout import Layout
from torchrl_ckpt.checkpoint.locate import find
from torchrl_ckpt.checkpoint.manifest import Manifest
from torchrl_ckpt.checkpoint.resume import choose, quarantine_after, refuse_to_overwrite
from torchrl_ckpt.config.ckpt import CheckpointConfig
from torchrl_ckpt.config.inference import InferenceConfig
from torchrl_ckpt.config.orchestrator import OrchestratorConfig
from torchrl_ckpt.config.rl_recipe import RlRecipe
from torchrl_ckpt.config.section import Section
from torchrl_ckpt.config.settings import to_json
from torchrl_ckpt.config.sft_recipe import SftRecipe
from torchrl_ckpt.config.trainer import RlTrainerConfig
from torchrl_ckpt.launcher.recipe_diff import notes_on_resume
from torchrl_ckpt.plugin_api.errors import DataError, RecipeError
from torchrl_ckpt.run import metrics
from torchrl_ckpt.run.attempt import Attempt
from torchrl_ckpt.run.directory import LOGS_MODE, RunDirectory, next_attempt, settle_run_id
from torchrl_ckpt.run.resolved import write_resolved
from torchrl_ckpt.run.run_lock import join_pair, locked_component, locked_run
from torchrl_ckpt.run.step_directories import StepDirectories

Recipe = SftRecipe | RlRecipe | RlTrainerConfig | OrchestratorConfig


@dataclass(frozen=True)
class Start:
    """A settled attempt, and what the user should know about it."""

    attempt: Attempt
    notes: list[str]
    stall_timeout: float | None
    """How long a process may show no progress, in seconds (`launcher.stall_timeout`)."""


@contextmanager
def begin_attempt(command: str, recipe: SftRecipe | RlRecipe) -> Iterator[Start]:
    """Lock the run's directory and settle its next attempt.

    Nothing is overwritten before it is clear that the run can start. Raises `RunDirectoryInUse`,
    `RunDirectoryUnwritable`, `CheckpointNotFound`, `CheckpointDamaged`, `CheckpointMismatch` or
    `RecipeError`.
    """
    shared = _shared_options(recipe)
    layout = _layout(shared.output_dir, shared.ckpt)
    with locked_run(shared.output_dir, command), _checkpoints(shared, ownership.owned):
        recover(layout)
        number = next_attempt(shared.output_dir)
        start, manifest = _settle(command, recipe, number, quarantine=True)
        if manifest is None:
            start.notes.extend(_notes_on_earlier_run(start.attempt.run))
        else:
            quarantine_after(layout, manifest.step)
            if shared.ckpt is not None and shared.ckpt.resume_from is not None:
                fork(find(shared.ckpt.resume_from).layout.step(manifest.step), layout)
        run = start.attempt.run
        run.logs.mkdir(LOGS_MODE, parents=True)
        last_kept = -1 if manifest is None else manifest.step
        metrics.truncate_after(run.metrics, last_kept, backup=run.logs / "metrics.before.jsonl")
        yield start


@contextmanager
def join_attempt(component: str, config: RlTrainerConfig | OrchestratorConfig) -> Iterator[Start]:
    """Lock out a second `component`, and settle the attempt of this one, started by hand.

    It is the attempt of the other component if that is at work, else the run's next one. No
    checkpoint is changed, since the other one may be at work. Raises as `begin_attempt` does.
    """
    if config.ckpt is not None and config.ckpt.resume_from is not None:
        raise RecipeError(
            "`ckpt.resume_from` is for `sft` and `rl`; use `torchrl-ckpt ckpt fork` first, then "
            "`--ckpt.resume-step`"
        )
    with locked_component(config.output_dir, component), _checkpoints(config, ownership.shared):
        start, _ = _settle(component, config, 0, quarantine=False)
        attempt = start.attempt
        options = {"max_steps": attempt.max_steps, "ckpt.resume_step": attempt.resume_step}
        pair = join_pair(config.output_dir, component, options)
        attempt = attempt.model_copy(update={"id": pair.id, "number": pair.number})
        yield replace(start, attempt=attempt)


@dataclass(frozen=True)
class Preview:
    """What a start would do: the step that it would resume from, if any, and what to know."""

    resolved: Path
    resume_step: int | None
    notes: list[str]


def preview(command: str, recipe: Section) -> Preview:
    """Settle a start without making it: verify the checkpoint, and write `dry_run.json` alone.

    Not `resolved.json`, which says what the latest start has done. Raises as `begin_attempt` does.
    """
    if isinstance(recipe, InferenceConfig):
        run = RunDirectory(recipe.output_dir, attempt=0)
        with locked_run(run.root, command):
            write_resolved(run.dry_run, command, recipe, None)
        return Preview(run.dry_run, None, [])
    assert isinstance(recipe, Recipe)
    run = RunDirectory(_shared_options(recipe).output_dir, attempt=0)
    with locked_run(run.root, command):
        start, _ = _settle(command, recipe, 0, quarantine=False)
        write_resolved(run.dry_run, command, recipe, start.attempt)
    return Preview(run.dry_run, start.attempt.resume_step, start.notes)


def _settle(
    command: str, recipe: Recipe, number: int, *, quarantine: bool
) -> tuple[Start, Manifest | None]:
    """The attempt, and the manifest of the verified checkpoint that it resumes from, if any."""
    shared = _shared_options(recipe)
    layout = _layout(shared.output_dir, shared.ckpt)
    if isinstance(recipe, SftRecipe):
        _check_data_files(recipe.data.files)
    manifest = _checkpoint(layout, shared.ckpt or CheckpointConfig(), quarantine=quarantine)
    notes = _notes_on_cores(shared)
    if manifest is not None:
        _check_steps_left(manifest.step, shared.max_steps)
        notes += notes_on_resume(manifest, command, to_json(recipe))
    attempt = _attempt(recipe, number, None if manifest is None else manifest.step)
    return Start(attempt, notes, shared.launcher.stall_timeout), manifest


def _attempt(recipe: Recipe, number: int, resume_step: int | None) -> Attempt:
    shared = _shared_options(recipe)
    return Attempt(
        output_dir=shared.output_dir,
        run_id=settle_run_id(shared.output_dir),
        number=number,
        max_steps=shared.max_steps,
        resume_step=resume_step,
        ckpt=shared.ckpt,
    )


def _shared_options(recipe: Recipe) -> SftRecipe | RlTrainerConfig | OrchestratorConfig:
    """The section with the options that all components share; the loader has compared them."""
    return recipe.trainer if isinstance(recipe, RlRecipe) else recipe


def _layout(output_dir: Path, ckpt: CheckpointConfig | None) -> Layout:
    # Checkpoints belong to the run even where this start has not switched checkpointing on.
    return Layout.of_run(output_dir, ckpt or CheckpointConfig())


@contextmanager
def _checkpoints(
    options: SftRecipe | RlTrainerConfig | OrchestratorConfig,
    hold: Callable[[Layout, Path, str], AbstractContextManager[None]],
) -> Iterator[None]:
    """Hold the run's checkpoint directory, if it has one or will have."""
    layout = _layout(options.output_dir, options.ckpt)
    if options.ckpt is None and not layout.root.is_dir():
        yield
        return
    with hold(layout, options.output_dir, settle_run_id(options.output_dir)):
        yield


def _checkpoint(layout: Layout, ckpt: CheckpointConfig, *, quarantine: bool) -> Manifest | None:
    """The verified checkpoint to resume from; None for a fresh start."""
    if ckpt.resume_from is not None:
        refuse_to_overwrite(layout)
        source = find(ckpt.resume_from).layout
        return choose(source, ckpt.resume_step or "latest", quarantine=False)
    if ckpt.resume_step is not None:
        return choose(layout, ckpt.resume_step, quarantine=quarantine)
    refuse_to_overwrite(layout)
    return None


def _check_steps_left(step: int, max_steps: int) -> None:
    if step >= max_steps:
        raise RecipeError(
            f"the checkpoint is of step {step} and `max_steps` is {max_steps}, so there is nothing "
            "left to train; raise `--max-steps`"
        )


def _check_data_files(files: Sequence[Path]) -> None:
    """Raise `DataError` for a file that does not exist, before a model is loaded for it."""
    for path in files:
        if not path.exists():
            raise DataError(f"there is no data file {path} (`data.files`)")


def _notes_on_earlier_run(run: RunDirectory) -> list[str]:
    steps = StepDirectories(run.weights).steps()
    if not steps:
        return []
    return [
        f"{run.root} holds an earlier run without checkpoints: its weights of step {max(steps)} "
        f"stay in {run.weights} until this run writes some of that step, and its metrics are kept "
        "in the new `logs/attempt_N`; another `--output-dir` keeps the two apart"
    ]


def _notes_on_cores(config: SftRecipe | RlTrainerConfig | OrchestratorConfig) -> list[str]:
    if isinstance(config, OrchestratorConfig):
        return []
    cores, threads = len(os.sched_getaffinity(0)), config.ranks * max(1, config.threads)
    if threads <= cores:
        return []
    each = f" with {config.threads} `threads` each" if config.threads > 1 else ""
    return [
        f"`ranks` is {config.ranks}{each}, and this process may use {cores} CPU cores: the ranks "
        "take turns on them, which is slower than fewer ranks"
    ]
